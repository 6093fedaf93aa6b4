"""Losses of every target against what predictions themselves say, against closed forms, and at both ends of a path."""

import math
from dataclasses import replace
from itertools import product
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.objectives import (
    FLOOR,
    Distance,
    Objective,
    Target,
    Weighting,
    effective_noise,
    error_gain,
    pseudo_huber,
    snr_weight,
    true_value,
)
from raystill.flow.paths import Coefficients, PairedDiffusionPath, Path, RayPath, interpolate
from raystill.flow.predictions import Kind, Prediction, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.models.fresh import stable_diffusion_scheduler

VP = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
KINDS: tuple[Kind, ...] = get_args(Kind)
TARGETS: tuple[Target, ...] = get_args(Target)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]
NOISY = RayPath(sigma=0.4)
angles = st.floats(0.002, 1.57)


def drawn(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def asked(
    kind: Kind, path: Path, schedule: Schedule, t: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Prediction, Tensor, Tensor, Coefficients]:
    """A wrong prediction about points of a path, with x_0, the effective noise and the coefficients."""
    x_0, mu, eps, value = (drawn(shape, seed, dtype) for seed in range(4))
    c = path.coefficients(schedule, t)
    e = effective_noise(c, mu, eps)
    x = interpolate(c, x_0, mu, eps) / column(c.norm, x_0)
    value.requires_grad_()
    return Prediction(kind, value, x, column(c.angle.cos(), x), column(c.angle.sin(), x)), x_0, e, c


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["diffusion", "flow"])
@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_those_of_what_the_prediction_says(kind: Kind, schedule: Schedule, shape: tuple[int, ...]) -> None:
    p, x_0, e, c = asked(kind, NOISY, schedule, torch.linspace(0.1, 0.9, shape[0], dtype=torch.float64), shape)
    v, v_hat = p.signal * e - p.noise * x_0, p.signal * p.epsilon - p.noise * p.data
    said = {"data": (p.data, x_0), "velocity": (v_hat, v), "noise": (p.epsilon, e)}
    for target, (found, truth) in said.items():
        expected = (found - truth).square().mean(dim=(1, 2, 3))
        torch.testing.assert_close(Objective(target=target).per_sample(p, x_0, e, c), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", [RayPath(), NOISY, PairedDiffusionPath()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_default_is_the_data_error_over_the_squared_sine(kind: Kind, path: Path) -> None:
    p, x_0, e, c = asked(kind, path, VP, times(0.05, 0.5, 1.0), (3, 2, 5, 7))
    data = Objective(target="data").per_sample(p, x_0, e, c)
    torch.testing.assert_close(Objective().per_sample(p, x_0, e, c), data / c.angle.sin().square())


@pytest.mark.parametrize("kind", KINDS)
def test_snr_turns_the_data_loss_into_the_noise_loss(kind: Kind) -> None:
    p, x_0, e, c = asked(kind, NOISY, VP, times(0.05, 0.5, 1.0), (3, 2, 5, 7))
    noise = Objective(target="noise").per_sample(p, x_0, e, c)
    torch.testing.assert_close(Objective(target="data", weighting="snr").per_sample(p, x_0, e, c), noise)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("distance", get_args(Distance))
@pytest.mark.parametrize("kind", KINDS)
def test_squared_gradients_are_those_of_the_loss_in_the_network_s_output(
    kind: Kind, distance: Distance, shape: tuple[int, ...]
) -> None:
    # Against automatic differentiation, near data and at the path's end, at every scale of the error.
    numbers = math.prod(shape[1:])
    p, x_0, e, c = asked(kind, NOISY, VP, torch.linspace(0.002, 1, shape[0], dtype=torch.float64), shape)
    for target, weighting, huber in product(TARGETS, WEIGHTINGS, (1e-3, 1.0)):
        objective = Objective(target=target, distance=distance, weighting=weighting, huber=huber)
        loss = objective.per_sample(p, x_0, e, c)
        (gradient,) = torch.autograd.grad(loss.sum(), p.value)
        found = objective.gradient_square(p, x_0, e, c)
        torch.testing.assert_close(found, numbers**2 * gradient.square().mean(dim=(1, 2, 3)))
        assert not found.requires_grad


@given(angles)
def test_weightings_are_the_papers_own_functions_of_the_signal_to_noise_ratio(angle: float) -> None:
    snr = (math.cos(angle) / math.sin(angle)) ** 2
    expected = {
        "uniform": 1, "snr": snr, "truncated_snr": max(snr, 1), "min_snr": min(snr, 5), "p2": 1 / (1 + snr),
    }  # fmt: skip
    assert set(expected) == set(WEIGHTINGS)
    for weighting in WEIGHTINGS:
        assert float(snr_weight(weighting, times(angle))) == pytest.approx(expected[weighting], rel=1e-9, abs=1e-15)


@given(angles, st.sampled_from(KINDS))
def test_gains_are_consistent_between_targets_and_with_the_velocity_weight(angle: float, kind: Kind) -> None:
    data, velocity, noise = (float(error_gain(kind, target, times(angle))) for target in TARGETS)
    assert data == pytest.approx(-math.sin(angle) * velocity)
    assert noise == pytest.approx(math.cos(angle) * velocity)
    assert velocity**2 == pytest.approx((1 + float(snr_weight("snr", times(angle)))) * data**2)


@pytest.mark.parametrize("distance", ["squared", "pseudo_huber"])
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ends_in_noise", [False, True])
def test_losses_and_gradients_are_finite_at_both_ends(
    kind: Kind, target: Target, distance: str, ends_in_noise: bool
) -> None:
    # A noise prediction is not asked at zero signal: `Denoiser` refuses.
    schedule: Schedule = FlowSchedule() if ends_in_noise else VP
    last = 0.999 if ends_in_noise and kind == "epsilon" else 1.0
    t = times(0.0, 1e-300, 1e-12, 1e-6, 1e-3, last)
    for weighting in WEIGHTINGS:
        p, x_0, e, c = asked(kind, NOISY, schedule, t, (6, 2, 3, 5), torch.float32)
        objective = Objective(target=target, distance=distance, weighting=weighting)  # type: ignore[arg-type]
        loss = objective.per_sample(p, x_0, e, c)
        (slope,) = torch.autograd.grad(loss.sum(), p.value)
        assert bool(loss.isfinite().all()), (weighting, loss)
        assert bool(slope.isfinite().all()), (weighting, slope)
        assert loss.dtype == torch.float32


def test_near_data_a_single_precision_loss_keeps_its_digits() -> None:
    for kind in KINDS:
        t = times(1e-3, 1e-4, 2e-5)
        p, x_0, e, c = asked(kind, NOISY, VP, t, (3, 2, 5, 7))
        exact = Objective().per_sample(p, x_0, e, c)
        single = replace(p, value=p.value.float(), x=p.x.float(), signal=p.signal.float(), noise=p.noise.float())
        torch.testing.assert_close(
            Objective().per_sample(single, x_0.float(), e.float(), c).double(), exact, rtol=1e-5, atol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_true_value_has_no_loss(kind: Kind) -> None:
    p, x_0, e, c = asked(kind, NOISY, VP, times(0.0, 0.4, 1.0), (3, 2, 5, 7))
    right = replace(p, value=true_value(p, x_0, e))
    for target in TARGETS:
        assert Objective(target=target).per_sample(right, x_0, e, c).abs().max() == 0
    told = Prediction(kind, right.value[1:], right.x[1:], right.signal[1:], right.noise[1:])  # the first has no noise
    torch.testing.assert_close(told.data, x_0[1:])
    torch.testing.assert_close(told.epsilon, e[1:])


def test_a_sample_s_loss_does_not_depend_on_its_batch() -> None:
    p, x_0, e, c = asked("v_prediction", NOISY, VP, times(0.1, 0.5, 1.0), (3, 2, 5, 7))
    objective = Objective(target="data", distance="pseudo_huber", huber=0.1, weighting="min_snr")
    together = objective.per_sample(p, x_0, e, c)
    for i in range(3):
        one = slice(i, i + 1)
        alone = Prediction(p.kind, p.value[one], p.x[one], p.signal[one], p.noise[one])
        part = Coefficients(*(values[one] for values in c))
        torch.testing.assert_close(objective.per_sample(alone, x_0[one], e[one], part), together[one])


def test_half_precision_answers_are_compared_in_single_precision() -> None:
    p, x_0, e, c = asked("v_prediction", NOISY, VP, times(0.1, 0.5, 1.0), (3, 2, 5, 7), torch.float32)
    loss = Objective().per_sample(replace(p, value=p.value.bfloat16()), x_0, e, c)
    assert loss.dtype == torch.float32
    rounded = Objective().per_sample(replace(p, value=p.value.bfloat16().float()), x_0, e, c)
    torch.testing.assert_close(loss, rounded, rtol=0, atol=0)


def test_nothing_waits_for_the_device() -> None:
    # Tensors of the meta device hold no numbers: whatever asked for one of them would raise.
    p, x_0, e, c = asked("v_prediction", NOISY, VP, times(0.1, 0.5, 1.0), (3, 2, 5, 7), torch.float32)
    value, x, signal, noise, data, e = (z.detach().to("meta") for z in (p.value, p.x, p.signal, p.noise, x_0, e))
    for weighting in WEIGHTINGS:
        objective = Objective(target="noise", distance="pseudo_huber", weighting=weighting)
        loss = objective.per_sample(Prediction(p.kind, value, x, signal, noise), data, e, c)
        assert (loss.device.type, tuple(loss.shape)) == ("meta", (3,))
    assert effective_noise(c, data, e).device.type == "meta"


@given(st.floats(-100, 100), st.floats(1e-4, 10))
def test_pseudo_huber_is_its_closed_form(error: float, huber: float) -> None:
    found = float(pseudo_huber(torch.full((1, 1, 1, 1), error, dtype=torch.float64), huber))
    assert found == pytest.approx(math.sqrt(error**2 + huber**2) - huber, rel=1e-9, abs=1e-11)


def test_pseudo_huber_goes_from_half_the_square_over_c_to_the_magnitude() -> None:
    error = drawn((1, 2, 5, 7), 0)
    torch.testing.assert_close(pseudo_huber(error, 1e4), error.square() / 2e4, rtol=1e-6, atol=0)
    torch.testing.assert_close(pseudo_huber(error, 1e-9), error.abs(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("path", [RayPath(), NOISY, RayPath(sigma=1.0), PairedDiffusionPath()], ids=str)
def test_the_effective_noise_and_data_make_up_the_point(path: Path, shape: tuple[int, ...]) -> None:
    _, x_0, e, c = asked("sample", path, VP, torch.linspace(0, 1, shape[0], dtype=torch.float64), shape)
    mu, eps = drawn(shape, 1), drawn(shape, 2)
    point = interpolate(c, x_0, mu, eps) / column(c.norm, x_0)
    torch.testing.assert_close(column(c.angle.cos(), x_0) * x_0 + column(c.angle.sin(), x_0) * e, point)


def test_the_effective_noise_of_independent_parts_is_unit_noise_and_of_data_the_mean() -> None:
    mu, eps = drawn((40, 4, 16, 16), 1), drawn((40, 4, 16, 16), 2)
    for t in (1e-9, 0.3, 1.0):
        e = effective_noise(NOISY.coefficients(VP, times(t).expand(40)), mu, eps)
        assert float(e.std()) == pytest.approx(1, abs=0.02)
    none = NOISY.coefficients(VP, times(0.0).expand(40))
    assert torch.equal(effective_noise(none, mu, eps), mu)


def test_noise_is_refused_where_a_path_has_none_of_its_own() -> None:
    objective = Objective(target="noise")
    for path in (RayPath(), RayPath(sigma=0.05), RayPath(sigma=0.09), PairedDiffusionPath()):
        with pytest.raises(UserError, match="near sigma = 0 use data or velocity: --set"):
            objective.check(path.coefficients(VP, times(1.0)))
        Objective().check(path.coefficients(VP, times(1.0)))
        p, x_0, e, c = asked("v_prediction", path, VP, times(0.2, 0.5, 1.0), (3, 2, 5, 7))
        with pytest.raises(UserError, match="near sigma = 0"):
            objective.per_sample(p, x_0, e, c)
    for schedule in (VP, FlowSchedule()):
        for sigma in (0.1, 0.3, 1.0):  # the end of the path is the worst of its points
            objective.check(RayPath(sigma=sigma).coefficients(schedule, torch.linspace(0, 1, 50, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "score"}, "target is 'score'; write one of data, velocity, noise"),
        ({"distance": "l1"}, "distance is 'l1'; write one of squared, pseudo_huber"),
        ({"weighting": "snr5"}, "weighting is 'snr5'; write one of uniform, snr"),
        ({"huber": 0.0}, "greater than 0"),
        ({"huber": float("nan")}, "greater than 0"),
    ],
)
def test_bad_settings_say_what_to_write(settings: dict[str, object], message: str) -> None:
    # Built around the annotations' own check, as a caller outside the tests is.
    objective = object.__new__(Objective)
    for name, value in {
        "target": "data",
        "distance": "squared",
        "huber": 1.0,
        "weighting": "uniform",
        **settings,
    }.items():
        object.__setattr__(objective, name, value)
    with pytest.raises(UserError, match=message):
        objective.__post_init__()


def test_the_floor_only_bounds_what_a_sample_prediction_makes_unbounded() -> None:
    near = times(0.0, FLOOR / 10)
    assert error_gain("sample", "velocity", near).abs().tolist() == pytest.approx([1 / math.sin(FLOOR)] * 2)
    for kind in KINDS:
        for target in TARGETS:
            gain = error_gain(kind, target, near).abs()
            assert float(gain.max()) <= (1 / math.sin(FLOOR) if kind == "sample" else 1) + 1e-6
