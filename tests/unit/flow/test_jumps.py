"""Jumps: stock DDIM, the exact path, preserved marginals, and DDPM's posterior as one of the stochastic ones."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.oracles.mixtures import Mixture, MixtureDenoiser
from tests.oracles.rays import ray_posterior
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.jumps import (
    Walk,
    check_eta,
    check_jump,
    entry,
    held,
    jump,
    own_noise,
    own_seeds,
    path_noise,
    renewed,
    start_mean,
    stop,
    stops,
)
from raystill.flow.paths import (
    Coefficients,
    DiffusionPath,
    PairedDiffusionPath,
    Path,
    RayPath,
    StraightPath,
    interpolate,
)
from raystill.flow.predictions import Kind, Prediction, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.flow.solvers import ddim
from raystill.models.fresh import stable_diffusion_scheduler

ALPHAS = stable_diffusion_scheduler("epsilon").alphas_cumprod.double()
SCHEDULE = DiffusionSchedule.from_alphas(ALPHAS)
SCHEDULES: list[Schedule] = [SCHEDULE, FlowSchedule(shift=3.0)]
NOISY: list[Path] = [RayPath(sigma=0.02), RayPath(sigma=0.5), RayPath(sigma=1.0)]
STILL: list[Path] = [RayPath(), PairedDiffusionPath(), StraightPath(), RayPath(end="own")]
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]


def latents(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(count)]


def times(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def perfect(x: Tensor, x_0: Tensor, c: Coefficients) -> Prediction:
    """The prediction of a network that knows x_0, at a point of unit length."""
    return Prediction("sample", x_0, x, column(c.angle.cos(), x), column(c.angle.sin(), x))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "flow"])
@pytest.mark.parametrize("path", [*NOISY, *STILL, DiffusionPath()], ids=str)
def test_stops_have_unit_length_the_asked_angles_and_the_path_s_mixture(path: Path, schedule: Schedule) -> None:
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    c = path.coefficients(schedule, t)
    found = stops(path, schedule, c.angle)
    torch.testing.assert_close(found.norm, torch.ones_like(t))
    for value, expected in zip(found, c, strict=True):
        torch.testing.assert_close(value, expected / c.norm, rtol=0, atol=1e-9)
    angles = schedule.angle(schedule.sampling_times(8))
    asked = stops(path, schedule, angles)
    torch.testing.assert_close(asked.angle, angles)
    assert [float(v[-1]) for v in asked] == [1, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "flow"])
@pytest.mark.parametrize("path", [*NOISY, *STILL], ids=str)
def test_an_anchored_jump_with_a_perfect_x_0_lands_exactly_on_the_path(
    path: Path, schedule: Schedule, shape: tuple[int, ...]
) -> None:
    x_0, mu, eps = latents(shape)
    late = torch.linspace(0.4, 0.95, shape[0], dtype=torch.float64)
    early = late * torch.linspace(0.1, 0.9, shape[0], dtype=torch.float64)
    c, c_r = (stops(path, schedule, path.coefficients(schedule, t).angle) for t in (late, early))
    found = jump(perfect(interpolate(c, x_0, mu, eps), x_0, c), mu, c, c_r, None, 0.0)
    raw = path.coefficients(schedule, early)
    expected = interpolate(raw, x_0, mu, eps) / column(raw.norm, x_0)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("path", [*NOISY, *STILL], ids=str)
def test_the_last_jump_is_the_estimate_of_clean_data(path: Path) -> None:
    x_0, mu, eps = latents((2, 1, 2, 3))
    c, c_r = (stops(held(path, "anchored"), SCHEDULE, SCHEDULE.angle(times(t, t))) for t in (0.7, 0.0))
    torch.testing.assert_close(jump(perfect(interpolate(c, x_0, mu, eps), x_0, c), mu, c, c_r, None, 0.0), x_0)


@pytest.mark.parametrize("path", [*NOISY, *STILL], ids=str)
def test_the_ode_jump_is_anchored_at_nothing_on_any_path(path: Path) -> None:
    assert held(path, "ode") == DiffusionPath()
    assert held(path, "anchored") is path


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 7])
def test_ode_jumps_without_fresh_noise_are_stock_ddim_on_the_mixture(kind: Kind, steps: int) -> None:
    mixture = Mixture.random(3, (2, 3, 4), torch.Generator().manual_seed(1))
    denoiser = MixtureDenoiser(mixture, SCHEDULE, kind)
    (start,) = latents((5, 2, 3, 4), 1)
    found = walked(denoiser, RayPath(), "ode", start, steps)
    grid = SCHEDULE.sampling_times(steps)
    assert float((found - ddim(denoiser, SCHEDULE, start, grid)).abs().max()) < 1e-12
    if 1000 % steps == 0:  # otherwise the stock scheduler is off by one in where a step ends
        stock = DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind, clip_sample=False,
            timestep_spacing="trailing",
        )  # fmt: skip
        stock.set_timesteps(steps)
        x = start
        for t in stock.timesteps:
            x = stock.step(denoiser(x, times(*[(int(t) + 1) / 1000] * 5)).value, t, x).prev_sample
        torch.testing.assert_close(found, x, rtol=1e-5, atol=1e-5)  # its alphas are float32


def walked(denoiser: MixtureDenoiser, path: Path, how: Any, start: Tensor, steps: int, eta: float = 0.0) -> Tensor:
    every = stops(held(path, how), SCHEDULE, SCHEDULE.angle(SCHEDULE.sampling_times(steps)))
    walk = Walk.begin(every, eta, start)
    x = walk.entry()
    for i in range(steps):
        prediction = denoiser.at_angle(x, stop(every, i, len(x)).angle)
        x = walk.jump(i, prediction) if i + 1 < steps else prediction.data
    return x


@pytest.mark.parametrize("path", STILL, ids=str)
def test_without_path_noise_both_jumps_agree_up_to_the_second_estimate_of_x_0(path: Path) -> None:
    # They hold the same mean after the first step; the ODE re-estimates it at the second, and then they part.
    denoiser = MixtureDenoiser(Mixture.random(3, (2, 3, 4), torch.Generator().manual_seed(1)), SCHEDULE)
    (start,) = latents((5, 2, 3, 4), 1)
    for steps in (1, 2):
        ode, anchored = (walked(denoiser, path, how, start, steps) for how in ("ode", "anchored"))
        torch.testing.assert_close(anchored, ode)
    ode, anchored = (walked(denoiser, path, how, start, 4) for how in ("ode", "anchored"))
    assert float((ode - anchored).abs().max()) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "flow"])
@pytest.mark.parametrize("path", [*NOISY, *STILL], ids=str)
def test_a_walk_with_a_perfect_x_0_keeps_to_the_path_of_the_teacher_s_start(path: Path, schedule: Schedule) -> None:
    # The start z is the teacher's, z = s_1 x_0 + n_1 mu, which is how stored targets are made.
    x_0, mu = latents((3, 2, 4, 5), 2)
    end = schedule.angle(times(1, 1, 1))
    start = column(end.cos(), mu) * x_0 + column(end.sin(), mu) * mu
    every = stops(path, schedule, schedule.angle(schedule.sampling_times(6)))
    walk = Walk.begin(every, 0.0, start)
    eps = own_noise(own_seeds(start), 0, start)
    x = walk.entry()
    for i in range(6):
        here = stop(every, i, 3)
        if i > 0:
            torch.testing.assert_close(x, interpolate(here, x_0, mu, eps), rtol=0, atol=1e-6)
        else:  # x_0 is not known yet: what it adds to the mean's noise alone is missing, at most s_1
            assert float((x - interpolate(here, x_0, mu, eps)).abs().max()) < 0.07 * float(x_0.abs().max())
        x = walk.jump(i, perfect(x, x_0, here))
    torch.testing.assert_close(walk.mean, mu)
    torch.testing.assert_close(x, x_0)


def test_the_first_points_of_a_noisy_path_have_the_unit_law() -> None:
    (start,) = latents((4, 50, 20, 20), 1)
    for sigma in (0.1, 1.0):
        x = Walk.begin(stops(RayPath(sigma=sigma), SCHEDULE, SCHEDULE.angle(times(1, 0))), 0.0, start).entry()
        assert float(x.mean()) == pytest.approx(0, abs=0.01)
        assert float(x.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("how", ["anchored", "ode"])
def test_marginals_given_x_0_and_mu_are_preserved_for_any_eta(how: Any, eta: float) -> None:
    count, x_0, mu = 100_000, 1.5, -0.8
    path = RayPath(sigma=0.6)
    rng = torch.Generator().manual_seed(0)
    every = [stops(path, SCHEDULE, path.coefficients(SCHEDULE, times(t)).angle) for t in (0.8, 0.5, 0.2)]
    own = [stops(held(path, how), SCHEDULE, c.angle) for c in every]
    full = torch.ones(1, 1, 1, count, dtype=torch.float64)
    draws = [torch.randn(full.shape, generator=rng, dtype=torch.float64) for _ in range(3)]
    # under the ODE the mean is one of the noises: its law is preserved, not its value
    mean = full * mu if how == "anchored" else torch.randn(full.shape, generator=rng, dtype=torch.float64)
    x = interpolate(every[0], full * x_0, mean, draws[0])
    for i in (0, 1):
        x = jump(perfect(x, full * x_0, own[i]), mean, own[i], own[i + 1], draws[i + 1] if eta else None, eta)
    c = every[2]
    expected = (c.data * x_0 + c.mean * mu, c.noise) if how == "anchored" else (c.data * x_0, c.angle.sin())
    assert float(x.mean()) == pytest.approx(float(expected[0]), abs=0.01)
    assert float(x.std()) == pytest.approx(float(expected[1]), rel=0.01)


@settings(max_examples=25)
@given(t=st.floats(0.05, 0.99), share=st.floats(0.05, 0.95), sigma=st.floats(0.05, 1.0), flows=st.booleans())
def test_the_posterior_is_the_stochastic_jump_with_eta_of_the_noise_ratios(
    t: float, share: float, sigma: float, flows: bool
) -> None:
    # eta^2 = 1 - (kappa_r / kappa_t)^2 makes the anchored jump DDPM's ancestral step on y = x - mu
    schedule, path = SCHEDULES[flows], RayPath(sigma=sigma)
    late, early = times(t), times(t * share)
    x_0, mu, eps = latents((1, 1, 2, 3))
    fresh = torch.flip(eps, dims=(3,))
    c, c_r = path.coefficients(schedule, late), path.coefficients(schedule, early)
    kappa = schedule.angle(early).tan() / schedule.angle(late).tan()
    unit, unit_r = (stops(path, schedule, v.angle) for v in (c, c_r))
    x = interpolate(c, x_0, mu, eps)
    eta = float((1 - kappa**2).sqrt())
    found = jump(perfect(x / column(c.norm, x), x_0, unit), mu, unit, unit_r, fresh, eta) * column(c_r.norm, x)
    q = ray_posterior(path, schedule, late, early)
    expected = column(q.point, x) * x + column(q.data, x) * x_0 + column(q.mean, x) * mu + column(q.noise, x) * fresh
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("path", [*STILL, RayPath(sigma=0.3)], ids=str)
def test_a_noise_where_its_coefficient_is_0_is_an_error(path: Path) -> None:
    x_0, mu, _ = latents((2, 1, 2, 3))
    t = times(0.5, 0.0) if path == RayPath(sigma=0.3) else times(0.5, 0.5)
    c = stops(path, SCHEDULE, path.coefficients(SCHEDULE, t).angle)
    with pytest.raises(UserError, match="no path noise: its coefficient is 0 there"):
        path_noise(perfect(x_0, x_0, c), mu, c)


def test_at_eta_one_all_noise_is_fresh_and_at_zero_none() -> None:
    old, fresh, _ = latents((2, 1, 2, 3))
    assert torch.equal(renewed(old, fresh, 1.0), fresh)
    assert torch.equal(renewed(old, fresh, 0.0), old)
    assert renewed(old, None, 0.0) is old


def test_where_the_schedule_starts_at_pure_noise_the_start_is_the_mean() -> None:
    start, x_0, _ = latents((2, 1, 2, 3))
    c = stops(RayPath(), FlowSchedule(), FlowSchedule().angle(times(1, 1)))
    torch.testing.assert_close(start_mean(start, perfect(start, x_0, c)), start)
    torch.testing.assert_close(entry(start, x_0, c), start)


def test_own_noise_is_a_sample_s_own() -> None:
    (start,) = latents((3, 2, 4, 4), 1)
    seeds = own_seeds(start)
    assert len(set(seeds)) == 3
    assert own_seeds(start[1:2]) == seeds[1:2]
    noise = own_noise(seeds, 0, start)
    assert torch.equal(own_noise(seeds[2:], 0, start[2:]), noise[2:])
    assert not torch.equal(own_noise(seeds, 1, start), noise)
    assert noise.dtype == start.dtype


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_an_eta_outside_the_unit_interval_is_refused(eta: float) -> None:
    with pytest.raises(UserError, match=r"eta is .*lies in \[0, 1\]"):
        check_jump("ode", eta)


def test_an_unknown_jump_and_an_eta_without_effect_are_refused() -> None:
    leap: Any = "leap"
    with pytest.raises(Exception, match="leap"):  # the type checker of the tests may be faster than the message
        check_jump(leap, 0.0)
    for path in STILL:
        check_eta(path, "ode", 0.5)
        with pytest.raises(UserError, match="carry no noise: write eta 0"):
            check_eta(path, "anchored", 0.5)
    check_eta(RayPath(sigma=0.1), "anchored", 1.0)
