"""Paths against the chains and lines that define them."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.oracles.rays import chained, derivatives, ray_kernel, ray_posterior
from torch import Tensor

from raystill.config.digest import canonical
from raystill.config.errors import UserError
from raystill.flow.paths import (
    Coefficients,
    DiffusionPath,
    End,
    PairedDiffusionPath,
    Path,
    RayPath,
    StraightPath,
    interpolate,
    path_of,
    times_at,
)
from raystill.flow.predictions import column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule, zero_terminal_snr
from raystill.models.fresh import stable_diffusion_scheduler

ALPHAS = stable_diffusion_scheduler("epsilon").alphas_cumprod.double()
SCHEDULE = DiffusionSchedule.from_alphas(ALPHAS)
PATHS: list[Path] = [
    RayPath(), RayPath(sigma=0.3), RayPath(sigma=1.0), PairedDiffusionPath(), StraightPath(), DiffusionPath(),
    RayPath(sigma=0.3, end="own"), StraightPath(end="own"),
]  # fmt: skip
ENDS: tuple[End, ...] = ("schedule", "own")
SCHEDULES: list[Schedule] = [SCHEDULE, DiffusionSchedule.from_alphas(zero_terminal_snr(ALPHAS)), FlowSchedule()]
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]


def latents(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(count)]


def grid(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


def ray_target(sigma: float, end: End) -> tuple[float, float]:
    """f and c sigma on SD's schedule, from the last of its alphas."""
    s_1, n_1 = float(ALPHAS[-1]) ** 0.5, (1 - float(ALPHAS[-1])) ** 0.5
    c = 1 / (1 + sigma**2) ** 0.5
    return (1.0, sigma) if end == "own" else (c * n_1 / (1 - s_1), c * sigma)


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_ray_path_is_the_composition_of_the_one_step_kernel(sigma: float, end: End) -> None:
    # x_t - f mu = sqrt(alpha_t) (x_{t-1} - f mu) + sqrt(1 - alpha_t) c sigma eps_t, through mean and variance
    data, mean, variance, (f, spread) = 1.0, 0.0, 0.0, ray_target(sigma, end)
    found = RayPath(sigma=sigma, end=end).coefficients(SCHEDULE, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    before = 1.0
    for k, cumulative in enumerate(ALPHAS.tolist()):
        alpha, before = cumulative / before, cumulative
        data, mean = alpha**0.5 * data, alpha**0.5 * mean + f * (1 - alpha**0.5)
        variance = alpha * variance + (1 - alpha) * spread**2
        expected = pytest.approx([data, mean, variance**0.5], abs=1e-9)
        assert [float(c[k]) for c in found] == expected


def test_ray_chain_of_drawn_noise_has_the_mean_and_variance_of_the_closed_form() -> None:
    sigma, x_0, mu, count = 0.7, 1.5, -0.4, 200_000
    f, spread = ray_target(sigma, "schedule")
    rng = torch.Generator().manual_seed(0)
    coarse = DiffusionSchedule.from_alphas(ALPHAS[99::100])
    alphas = torch.cat([ALPHAS[99:100], ALPHAS[199::100] / ALPHAS[99:-100:100]])
    x = torch.full((count,), x_0, dtype=torch.float64)
    for alpha in alphas:
        eps = torch.randn(count, generator=rng).double()
        x = f * mu + alpha.sqrt() * (x - f * mu) + (1 - alpha).sqrt() * spread * eps
    c = RayPath(sigma=sigma).coefficients(coarse, torch.ones(1, dtype=torch.float64))
    assert float(x.mean()) == pytest.approx(float(c.data) * x_0 + float(c.mean) * mu, abs=0.01)
    assert float(x.std()) == pytest.approx(float(c.noise), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_ray_path_with_zero_mean_is_vp_with_its_noise_scaled(sigma: float, shape: tuple[int, ...]) -> None:
    x_0, _, eps = latents(shape)
    t = torch.linspace(0.1, 1, shape[0], dtype=torch.float64)
    path = RayPath(sigma=sigma, end="own")
    found = interpolate(path.coefficients(SCHEDULE, t), x_0, torch.zeros_like(x_0), eps)
    for i in range(shape[0]):
        s, n = float(SCHEDULE.signal(t)[i]), float(SCHEDULE.noise(t)[i])
        torch.testing.assert_close(found[i], s * x_0[i] + sigma * n * eps[i])


@pytest.mark.parametrize("shape", SHAPES)
def test_interpolation_uses_each_sample_s_own_coefficients(shape: tuple[int, ...]) -> None:
    x_0, mu, eps = latents(shape)
    a, m, b = (torch.rand(shape[0], dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    found = interpolate(Coefficients(a, m, b), x_0, mu, eps)
    for i in range(shape[0]):
        torch.testing.assert_close(found[i], float(a[i]) * x_0[i] + float(m[i]) * mu[i] + float(b[i]) * eps[i])


def test_without_noise_ray_straight_and_paired_paths_are_one_line_in_snr_coordinates() -> None:
    t = grid(300)
    ray, paired = RayPath().coefficients(SCHEDULE, t), PairedDiffusionPath().coefficients(SCHEDULE, t)
    straight = StraightPath().coefficients(SCHEDULE, t)
    x_0, mu, eps = latents((300, 1, 2, 3))
    for c in (ray, paired, straight):
        assert bool((c.noise == 0).all())
        normed = interpolate(c, x_0, mu, eps) / column(c.norm, x_0)
        expected = column(c.angle.cos(), x_0) * x_0 + column(c.angle.sin(), x_0) * mu
        torch.testing.assert_close(normed, expected)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_angle_and_norm_are_those_of_the_point_with_the_mean_counted_as_noise(path: Path) -> None:
    c = path.coefficients(SCHEDULE, grid(257))
    noise = (c.mean**2 + c.noise**2).sqrt()
    torch.testing.assert_close(c.norm * c.angle.cos(), c.data)
    torch.testing.assert_close(c.norm * c.angle.sin(), noise)
    assert bool((c.angle.diff() > 0).all())  # what `times_at` relies on
    assert [float(v[0]) for v in c] == [1, 0, 0]


def test_paired_path_is_the_teacher_s_own_and_starts_at_its_start() -> None:
    c = PairedDiffusionPath().coefficients(SCHEDULE, grid(100))
    torch.testing.assert_close(c.angle, SCHEDULE.angle(grid(100)))
    torch.testing.assert_close(c.norm, torch.ones(100, dtype=torch.float64))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_times_at_finds_the_angles_and_gives_one_beyond_the_end(path: Path) -> None:
    t = torch.cat([grid(50)[1:], torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))])
    angles = path.coefficients(SCHEDULE, t).angle
    torch.testing.assert_close(times_at(path, SCHEDULE, angles), t, rtol=0, atol=1e-12)
    assert times_at(path, SCHEDULE, torch.tensor([1.58], dtype=torch.float64)).tolist() == [1]


def test_times_at_of_the_paired_path_is_the_inverse_of_the_schedule() -> None:
    angles = SCHEDULE.angle(grid(77))
    torch.testing.assert_close(
        times_at(PairedDiffusionPath(), SCHEDULE, angles), SCHEDULE.time_of(angles), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("sigma", [-0.01, 1.01, float("nan")])
def test_a_sigma_outside_the_unit_interval_is_refused(sigma: float) -> None:
    with pytest.raises(UserError, match=r"sigma is .*lies in \[0, 1\]"):
        RayPath(sigma=sigma)


def test_a_ray_path_with_zero_mean_and_sigma_one_is_the_diffusion_path() -> None:
    x_0, _, eps = latents((40, 1, 2, 3))
    own = RayPath(sigma=1.0, end="own")
    ray, diffusion = (p.coefficients(SCHEDULE, grid(40)) for p in (own, DiffusionPath()))
    zero = torch.zeros_like(x_0)
    torch.testing.assert_close(interpolate(ray, x_0, zero, eps), interpolate(diffusion, x_0, zero, eps))
    torch.testing.assert_close(diffusion.angle, SCHEDULE.angle(grid(40)))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "zero-snr", "flow"])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_derivatives_are_those_of_central_differences(path: Path, schedule: Schedule) -> None:
    # Away from the knots of the discrete schedules, where their angle has corners.
    t, h = (torch.arange(5, 1000, 97, dtype=torch.float64) + 0.4) / 1000, 1e-5
    found, before, after = derivatives(path, schedule, t), *(path.coefficients(schedule, t + d) for d in (-h, h))
    for slope, low, high in zip(found, before, after, strict=True):
        torch.testing.assert_close(slope, (high - low) / (2 * h), rtol=1e-5, atol=1e-6)


def test_derivatives_are_there_for_a_sampler_too() -> None:
    with torch.inference_mode():
        found = derivatives(RayPath(sigma=0.5), FlowSchedule(), grid(3))
    c = 1 / 1.25**0.5
    torch.testing.assert_close(torch.stack(found), torch.tensor([[-1.0], [c], [c / 2]]).double().expand(3, 3))
    assert not any(v.requires_grad for v in found)


def test_the_derivative_of_the_straight_path_is_the_velocity_from_data_to_mean() -> None:
    found = derivatives(StraightPath(), FlowSchedule(), grid(5)[1:])
    assert [v.tolist() for v in found] == [[-1.0] * 4, [1.0] * 4, [0.0] * 4]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["sd", "zero-snr", "flow"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_the_forward_chain_composed_over_all_steps_is_the_closed_form(
    sigma: float, end: End, schedule: Schedule
) -> None:
    path, times = RayPath(sigma=sigma, end=end), grid(1001)[:, None]
    c = path.coefficients(schedule, times[0])
    composed = []
    for r, t in pairwise(times):
        c = chained(c, ray_kernel(path, schedule, r, t))
        composed.append(torch.stack(c))
    expected = torch.stack(path.coefficients(schedule, times[1:, 0]), dim=1)
    torch.testing.assert_close(torch.stack(composed)[..., 0], expected, rtol=0, atol=1e-7)


@given(
    t=st.floats(0.01, 1.0), share=st.floats(0.0, 1.0), sigma=st.floats(0.0, 1.0), which=st.integers(0, 2),
    end=st.sampled_from(ENDS),
)  # fmt: skip
def test_the_posterior_after_the_path_is_the_path(t: float, share: float, sigma: float, which: int, end: End) -> None:
    # x_t | x_0, mu and then x_r | x_t, x_0, mu is x_r | x_0, mu
    path, schedule = RayPath(sigma=sigma, end=end), SCHEDULES[which]
    late, early = (torch.tensor([v], dtype=torch.float64) for v in (t, t * share))
    q, c = ray_posterior(path, schedule, late, early), path.coefficients(schedule, late)
    found = (q.point * c.data + q.data, q.point * c.mean + q.mean, torch.hypot(q.point * c.noise, q.noise))
    for value, expected in zip(found, path.coefficients(schedule, early), strict=True):
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-9)


def test_the_posterior_is_the_one_by_bayes_on_a_grid() -> None:
    # q(x_r | x_t, x_0, mu) is proportional to kernel(x_t | x_r) q(x_r | x_0, mu), normalised numerically
    path, x_0, mu, x_t = RayPath(sigma=0.4), 1.2, -0.7, 0.3
    r, t = (torch.tensor([v], dtype=torch.float64) for v in (0.35, 0.6))
    c, kernel, q = path.coefficients(SCHEDULE, r), ray_kernel(path, SCHEDULE, r, t), ray_posterior(path, SCHEDULE, t, r)
    x = torch.linspace(-4, 4, 80001, dtype=torch.float64)
    prior = (x - c.data * x_0 - c.mean * mu) / c.noise
    likelihood = (x_t - kernel.data * x - kernel.mean * mu) / kernel.noise
    weight = torch.softmax(-0.5 * (prior**2 + likelihood**2), dim=0)
    mean = (weight * x).sum()
    assert float(mean) == pytest.approx(float(q.point * x_t + q.data * x_0 + q.mean * mu), abs=1e-6)
    assert float((weight * (x - mean) ** 2).sum().sqrt()) == pytest.approx(float(q.noise), rel=1e-6)


def test_the_posterior_with_zero_mean_is_ddpm_s() -> None:
    k = 600
    t, r = (torch.tensor([(i + 1) / 1000], dtype=torch.float64) for i in (k, k - 1))
    q = ray_posterior(RayPath(sigma=1.0, end="own"), SCHEDULE, t, r)
    now, before = ALPHAS[k], ALPHAS[k - 1]
    beta = 1 - now / before
    assert float(q.point) == pytest.approx(float((1 - beta).sqrt() * (1 - before) / (1 - now)))
    assert float(q.data) == pytest.approx(float(before.sqrt() * beta / (1 - now)))
    assert float(q.noise) ** 2 == pytest.approx(float(beta * (1 - before) / (1 - now)))


def test_chains_and_posteriors_that_go_the_wrong_way_are_refused() -> None:
    early, late = (torch.tensor([v], dtype=torch.float64) for v in (0.2, 0.6))
    with pytest.raises(UserError, match=r"found r = \[0.6\], t = \[0.2\]"):
        ray_kernel(RayPath(), SCHEDULE, late, early)
    with pytest.raises(UserError, match="from r to a later t"):
        ray_posterior(RayPath(), SCHEDULE, early, late)
    with pytest.raises(UserError, match="nothing before data"):
        ray_posterior(RayPath(), SCHEDULE, torch.zeros_like(early), torch.zeros_like(early))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_path_is_read_back_from_its_canonical_form(path: Path) -> None:
    assert path_of(canonical(path)) == path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "Spiral"}, "'Spiral'; write one of RayPath, PairedDiffusionPath"),
        ({}, "kind None"),
        ({"kind": "StraightPath", "sigma": 0.1}, "a StraightPath has no sigma"),
        ({"kind": "DiffusionPath", "end": "own"}, "a DiffusionPath has no end"),
        ({"kind": "RayPath", "sigma": 1.5}, r"sigma is 1.5; .*lies in \[0, 1\]"),
    ],
)
def test_unknown_paths_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        path_of(settings)


@pytest.mark.parametrize("path", [RayPath(sigma=0.5), DiffusionPath(), PairedDiffusionPath()], ids=str)
@pytest.mark.parametrize("t", [-0.1, 1.1, float("nan")])
def test_times_outside_the_unit_interval_are_refused(path: Path, t: float) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        path.coefficients(SCHEDULE, torch.tensor([0.5, t], dtype=torch.float64))
