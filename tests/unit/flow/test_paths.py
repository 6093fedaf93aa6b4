"""Paths against the chains and lines that define them."""

import pytest
import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.paths import Coefficients, PairedDiffusionPath, Path, RayPath, interpolate, times_at
from raystill.flow.predictions import column
from raystill.flow.schedules import DiffusionSchedule
from raystill.models.fresh import stable_diffusion_scheduler

ALPHAS = stable_diffusion_scheduler("epsilon").alphas_cumprod.double()
SCHEDULE = DiffusionSchedule.from_alphas(ALPHAS)
PATHS: list[Path] = [RayPath(), RayPath(sigma=0.3), RayPath(sigma=1.0), PairedDiffusionPath()]
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]


def latents(shape: tuple[int, ...], count: int = 3) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(count)]


def grid(count: int) -> Tensor:
    return torch.linspace(0, 1, count, dtype=torch.float64)


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
def test_ray_path_is_the_composition_of_the_one_step_kernel(sigma: float) -> None:
    # x_t - mu = sqrt(alpha_t) (x_{t-1} - mu) + sqrt(1 - alpha_t) sigma eps_t, followed through mean and variance
    data, mean, variance = 1.0, 0.0, 0.0
    found = RayPath(sigma=sigma).coefficients(SCHEDULE, torch.arange(1, 1001, dtype=torch.float64) / 1000)
    before = 1.0
    for k, cumulative in enumerate(ALPHAS.tolist()):
        alpha, before = cumulative / before, cumulative
        data, mean = alpha**0.5 * data, alpha**0.5 * mean + 1 - alpha**0.5
        variance = alpha * variance + (1 - alpha) * sigma**2
        expected = pytest.approx([data, mean, variance**0.5], abs=1e-9)
        assert [float(c[k]) for c in found] == expected


def test_ray_chain_of_drawn_noise_has_the_mean_and_variance_of_the_closed_form() -> None:
    sigma, x_0, mu, count = 0.7, 1.5, -0.4, 200_000
    rng = torch.Generator().manual_seed(0)
    coarse = DiffusionSchedule.from_alphas(ALPHAS[99::100])
    alphas = torch.cat([ALPHAS[99:100], ALPHAS[199::100] / ALPHAS[99:-100:100]])
    x = torch.full((count,), x_0, dtype=torch.float64)
    for alpha in alphas:
        x = mu + alpha.sqrt() * (x - mu) + (1 - alpha).sqrt() * sigma * torch.randn(count, generator=rng).double()
    c = RayPath(sigma=sigma).coefficients(coarse, torch.ones(1, dtype=torch.float64))
    assert float(x.mean()) == pytest.approx(float(c.data) * x_0 + float(c.mean) * mu, abs=0.01)
    assert float(x.std()) == pytest.approx(float(c.noise), rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [0.25, 1.0])
def test_ray_path_with_zero_mean_is_vp_with_its_noise_scaled(sigma: float, shape: tuple[int, ...]) -> None:
    x_0, _, eps = latents(shape)
    t = torch.linspace(0.1, 1, shape[0], dtype=torch.float64)
    found = interpolate(RayPath(sigma=sigma).coefficients(SCHEDULE, t), x_0, torch.zeros_like(x_0), eps)
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
    straight = Coefficients(1 - t, t, torch.zeros_like(t))
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
    assert times_at(path, SCHEDULE, torch.tensor([1.57], dtype=torch.float64)).tolist() == [1]


def test_times_at_of_the_paired_path_is_the_inverse_of_the_schedule() -> None:
    angles = SCHEDULE.angle(grid(77))
    torch.testing.assert_close(
        times_at(PairedDiffusionPath(), SCHEDULE, angles), SCHEDULE.time_of(angles), atol=1e-12, rtol=0
    )


@pytest.mark.parametrize("sigma", [-0.01, 1.01, float("nan")])
def test_a_sigma_outside_the_unit_interval_is_refused(sigma: float) -> None:
    with pytest.raises(UserError, match=r"sigma is .*lies in \[0, 1\]"):
        RayPath(sigma=sigma)
