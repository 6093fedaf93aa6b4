"""Solvers against closed-form solutions, their own order, and diffusers' schedulers."""

import math
from collections.abc import Callable

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor

from raystill.flow.mixtures import Mixture, MixtureDenoiser
from raystill.flow.predictions import Kind, Prediction
from raystill.flow.schedules import DiffusionSchedule
from raystill.flow.solvers import ddim, dpm_solver_2m
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
SHAPES = [(2, 3, 4), (2, 2, 2)]
Solver = Callable[..., Tensor]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    return torch.randn((count, *shape), generator=rng(7), dtype=torch.float64)


def grid(steps: int, end: float) -> Tensor:
    """Times from 1 to `end`, uniform in half log-SNR, on which the order of a solver shows."""
    edge = torch.tensor([1.0, end], dtype=torch.float64)
    first, last = -torch.log(torch.tan(SCHEDULE.angle(edge)))
    angles = torch.atan(torch.exp(-torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)))
    return SCHEDULE.time_of(angles)


def order(solver: Solver, steps: list[int]) -> float:
    """Slope of log error against log step size on a mixture, between the first and the last step count."""
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE)
    x = start((2, 3, 4))
    truth = dpm_solver_2m(teacher, SCHEDULE, x, grid(1500, 0.2))
    errors = [float((solver(teacher, SCHEDULE, x, grid(n, 0.2)) - truth).square().mean().sqrt()) for n in steps]
    return math.log(errors[0] / errors[-1]) / math.log(steps[-1] / steps[0])


def test_ddim_has_order_one() -> None:
    assert order(ddim, [100, 400]) == pytest.approx(1, abs=0.15)


def test_dpm_solver_2m_has_order_two() -> None:
    assert order(dpm_solver_2m, [40, 160]) == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("solver", "tolerance"), [(ddim, 6e-3), (dpm_solver_2m, 2e-4)])
def test_one_gaussian_is_carried_along_its_closed_form_solution(solver: Solver, tolerance: float, kind: Kind) -> None:
    # x_t = s_t m + sqrt(s_t^2 v + n_t^2) u with a constant u: the law stays Gaussian and the flow is affine.
    mean, variance = (
        torch.randn(1, 2, 3, 4, generator=rng()).double(),
        torch.rand(1, 2, 3, 4, generator=rng(1)).double(),
    )
    teacher = MixtureDenoiser(Mixture(torch.ones(1, dtype=torch.float64), mean, variance + 0.1), SCHEDULE, kind)
    times = grid(400, 0.05)
    (s_1, s_r), (n_1, n_r) = SCHEDULE.signal(times[[0, -1]]), SCHEDULE.noise(times[[0, -1]])
    x = start((2, 3, 4))
    u = (x - s_1 * mean) / (s_1**2 * (variance + 0.1) + n_1**2).sqrt()
    expected = s_r * mean + (s_r**2 * (variance + 0.1) + n_r**2).sqrt() * u
    torch.testing.assert_close(solver(teacher, SCHEDULE, x, times), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("solver", [ddim, dpm_solver_2m])
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_do_not_depend_on_their_batch(solver: Solver, shape: tuple[int, int, int]) -> None:
    teacher, times = MixtureDenoiser(Mixture.random(2, shape, rng()), SCHEDULE), SCHEDULE.sampling_times(6)
    x = start(shape, 3)
    alone = torch.cat([solver(teacher, SCHEDULE, one, times) for one in x.split(1)])
    torch.testing.assert_close(solver(teacher, SCHEDULE, x, times), alone)


@pytest.mark.parametrize("solver", [ddim, dpm_solver_2m])
def test_one_step_to_data_is_the_denoiser_s_answer(solver: Solver) -> None:
    teacher, x = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE), start((2, 3, 4))
    found = solver(teacher, SCHEDULE, x, SCHEDULE.sampling_times(1))
    torch.testing.assert_close(found, teacher(x, torch.ones(2, dtype=torch.float64)).data)


def test_each_step_asks_once() -> None:
    teacher, asked = MixtureDenoiser(Mixture.random(2, (1, 2, 3), rng()), SCHEDULE), []

    def counted(x: Tensor, t: Tensor) -> Prediction:
        asked.append(t.tolist())
        return teacher(x, t)

    for solver in (ddim, dpm_solver_2m):
        asked.clear()
        solver(counted, SCHEDULE, start((1, 2, 3)), SCHEDULE.sampling_times(4))
        assert asked == [[1.0] * 2, [0.75] * 2, [0.5] * 2, [0.25] * 2]


@pytest.mark.parametrize("solver", [ddim, dpm_solver_2m])
def test_zero_terminal_snr_is_sampled_without_infinities(solver: Solver) -> None:
    stock = DDIMScheduler.from_config(stable_diffusion_scheduler("v_prediction").config, rescale_betas_zero_snr=True)
    schedule = DiffusionSchedule.from_alphas(stock.alphas_cumprod)
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), schedule, "v_prediction")
    few, many = (solver(teacher, schedule, start((2, 3, 4)), schedule.sampling_times(n)) for n in (100, 400))
    torch.testing.assert_close(few, many, rtol=0, atol=0.1)


def test_the_kappa_weighted_mean_noise_is_the_target_mean_of_a_single_step() -> None:
    # d(x / s) / d kappa = eps along the teacher's ODE, hence z / s_1 = x_0 + kappa_1 eps_bar; DDIM keeps this exactly.
    teacher, z = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE), start((2, 3, 4))
    times = SCHEDULE.sampling_times(250)
    kappa = torch.tan(SCHEDULE.angle(times))
    x, total = z, torch.zeros_like(z)
    for i in range(250):
        total += (kappa[i] - kappa[i + 1]) * teacher(x, times[i].expand(2)).epsilon
        x = ddim(teacher, SCHEDULE, x, times[i : i + 2])
    signal, noise = SCHEDULE.signal(times[:1]), SCHEDULE.noise(times[:1])
    mu = (z - signal * x) / noise
    torch.testing.assert_close(total / kappa[0], mu)
    one = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    constant = lambda at, t: Prediction("epsilon", mu, at, signal * one, noise * one)  # noqa: E731
    torch.testing.assert_close(ddim(constant, SCHEDULE, z, SCHEDULE.sampling_times(1)), x)


def stock_loop(scheduler: DDIMScheduler | DPMSolverMultistepScheduler, teacher: MixtureDenoiser, steps: int) -> Tensor:
    """The loop of a diffusers pipeline around a network that answers as the oracle does."""
    scheduler.set_timesteps(steps)
    x = start((2, 3, 4))
    for k in scheduler.timesteps:
        value = teacher(x, ((k + 1).double() / 1000).expand(2)).value
        x = scheduler.step(value, k, x).prev_sample
    return x


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 4, 8, 25])
def test_ddim_is_diffusers_ddim(kind: Kind, steps: int) -> None:
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE, kind)
    expected = stock_loop(stable_diffusion_scheduler(kind), teacher, steps)
    found = ddim(teacher, SCHEDULE, start((2, 3, 4)), SCHEDULE.sampling_times(steps))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # its alphas are single precision


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [2, 4, 12, 25])
def test_dpm_solver_2m_is_diffusers_dpm_solver_multistep(kind: Kind, steps: int) -> None:
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE, kind)
    scheduler = DPMSolverMultistepScheduler.from_config(
        stable_diffusion_scheduler(kind).config, algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
        final_sigmas_type="zero",
    )  # fmt: skip
    expected = stock_loop(scheduler, teacher, steps)
    found = dpm_solver_2m(teacher, SCHEDULE, start((2, 3, 4)), SCHEDULE.sampling_times(steps))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
