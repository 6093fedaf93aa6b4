"""Solvers against closed-form solutions, their own order, and diffusers' schedulers."""

import math
from collections.abc import Callable
from functools import cache

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
)
from tests.oracles.mixtures import Mixture, MixtureDenoiser
from torch import Tensor

from raystill.flow.predictions import Kind, Prediction
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule, scaled_linear_alphas, zero_terminal_snr
from raystill.flow.solvers import Solver, calls, ddim, dpm_solver_2m, euler, heun
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
ZERO_SNR = DiffusionSchedule.from_alphas(zero_terminal_snr(scaled_linear_alphas()))
FLOW = FlowSchedule()
SCHEDULES = {"vp": SCHEDULE, "zero-snr": ZERO_SNR, "flow": FLOW}
SHAPES = [(2, 3, 4), (2, 2, 2)]
SOLVERS: list[Solver] = [ddim, euler, heun, dpm_solver_2m]
KINDS: list[Kind] = ["epsilon", "v_prediction", "sample", "flow_prediction"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start(shape: tuple[int, int, int], count: int = 2) -> Tensor:
    return torch.randn((count, *shape), generator=rng(7), dtype=torch.float64)


def grid(steps: int, end: float, schedule: Schedule = SCHEDULE, begin: float = 1.0) -> Tensor:
    """Times from `begin` to `end`, uniform in half log-SNR, on which the order of a solver shows."""
    edge = torch.tensor([begin, end], dtype=torch.float64)
    first, last = -torch.log(torch.tan(schedule.angle(edge)))
    angles = torch.atan(torch.exp(-torch.linspace(float(first), float(last), steps + 1, dtype=torch.float64)))
    return schedule.time_of(angles)


def even(steps: int, begin: float, end: float) -> Tensor:
    return torch.linspace(begin, end, steps + 1, dtype=torch.float64)


def oracle(schedule: Schedule, kind: Kind = "v_prediction") -> MixtureDenoiser:
    return MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), schedule, kind)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean().sqrt())


INTERVALS: dict[str, Callable[[Schedule, int], Tensor]] = {
    "lambda": lambda schedule, n: grid(n, 0.2, schedule, 0.97),
    "time": lambda schedule, n: even(n, 0.97, 0.2),
    "from noise": lambda schedule, n: even(n, 1.0, 0.2),
    "upwards": lambda schedule, n: grid(n, 0.97, schedule, 0.1),
    "from data": lambda schedule, n: even(n, 0.0, 0.97),
}


@cache
def solved(name: str, interval: str) -> tuple[Tensor, Tensor]:
    """A start for the interval, near the data where times rise, and where the flow takes it, by Heun."""
    schedule, times = SCHEDULES[name], INTERVALS[interval](SCHEDULES[name], 600)
    teacher = oracle(schedule)
    x = start((2, 3, 4)) if times[0] > times[-1] else teacher.mixture.draw(2, rng(3))
    return x, heun(teacher, schedule, x, times)


def order(solver: Solver, name: str, interval: str) -> float:
    """Slope of log error against log step size on a mixture, from 40 to 160 steps."""
    schedule, (x, truth) = SCHEDULES[name], solved(name, interval)
    few, many = (
        error(solver(oracle(schedule), schedule, x, INTERVALS[interval](schedule, n)), truth) for n in (40, 160)
    )
    return math.log(few / many) / math.log(4)


ORDERS: list[tuple[Solver, int]] = [(ddim, 1), (euler, 1), (heun, 2), (dpm_solver_2m, 2)]


@pytest.mark.parametrize(("solver", "expected"), ORDERS)
@pytest.mark.parametrize("interval", ["lambda", "time", "upwards"])
@pytest.mark.parametrize("name", ["vp", "flow"])
def test_orders(name: str, interval: str, solver: Solver, expected: int) -> None:
    assert order(solver, name, interval) == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("solver", "expected"), ORDERS[:3])
@pytest.mark.parametrize("name", ["zero-snr", "flow"])
def test_orders_from_pure_noise(name: str, solver: Solver, expected: int) -> None:
    assert order(solver, name, "from noise") == pytest.approx(expected, abs=0.2)


@pytest.mark.parametrize(("solver", "expected"), ORDERS)
def test_orders_from_clean_data(solver: Solver, expected: int) -> None:
    # On a flow schedule: Stable Diffusion's jumps to an angle of 0.03 in its first step of 1000. DPM-Solver's first two
    # steps are of first order here, since log-SNR begins at infinity, and their share of the error dies out slowly.
    assert order(solver, "flow", "from data") == pytest.approx(expected, abs=0.35 if solver is dpm_solver_2m else 0.2)


@cache
def sampled() -> Tensor:
    return heun(oracle(SCHEDULE), SCHEDULE, start((2, 3, 4)), even(1000, 1.0, 0.0))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_inverting_a_sample_gives_back_its_start(solver: Solver, kind: Kind) -> None:
    z, x_0, teacher = start((2, 3, 4)), sampled(), oracle(SCHEDULE, kind)
    coarse, fine = (error(solver(teacher, SCHEDULE, x_0, even(n, 0.0, 1.0)), z) for n in (40, 160))
    assert fine < min(coarse / 2, 0.15)


def test_a_data_prediction_has_no_noise_to_start_an_inversion_with() -> None:
    teacher, x = oracle(SCHEDULE, "sample"), start((2, 3, 4))
    for solver in SOLVERS:
        with pytest.raises(ValueError, match="ask at times t > 0"):
            solver(teacher, SCHEDULE, x, even(4, 0.0, 1.0))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("solver", "tolerance"), [(ddim, 6e-3), (euler, 6e-3), (heun, 2e-4), (dpm_solver_2m, 2e-4)])
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


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_samples_do_not_depend_on_their_batch(solver: Solver, shape: tuple[int, int, int]) -> None:
    teacher, times = MixtureDenoiser(Mixture.random(2, shape, rng()), SCHEDULE), SCHEDULE.sampling_times(6)
    x = start(shape, 3)
    alone = torch.cat([solver(teacher, SCHEDULE, one, times) for one in x.split(1)])
    torch.testing.assert_close(solver(teacher, SCHEDULE, x, times), alone)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_to_data_is_the_denoiser_s_answer(solver: Solver) -> None:
    teacher, x = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULE), start((2, 3, 4))
    found = solver(teacher, SCHEDULE, x, SCHEDULE.sampling_times(1))
    torch.testing.assert_close(found, teacher(x, torch.ones(2, dtype=torch.float64)).data)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("times", [SCHEDULE.sampling_times(4), even(5, 1.0, 0.3), even(3, 0.1, 1.0)], ids=len)
def test_each_step_asks_once_and_heun_at_its_end_too(solver: Solver, times: Tensor) -> None:
    teacher, asked = MixtureDenoiser(Mixture.random(2, (1, 2, 3), rng()), SCHEDULE), []

    def counted(x: Tensor, t: Tensor) -> Prediction:
        asked.append(t.tolist())
        return teacher(x, t)

    solver(counted, SCHEDULE, start((1, 2, 3)), times)
    expected = times[:-1].tolist()
    if solver is heun:
        ends = [[r] if r > 0 else [] for r in times[1:].tolist()]
        expected = [time for t, end in zip(times[:-1].tolist(), ends, strict=True) for time in (t, *end)]
    assert asked == [[t] * 2 for t in expected]
    assert calls(solver, times) == len(asked)


@pytest.mark.parametrize("solver", SOLVERS)
def test_zero_terminal_snr_is_sampled_without_infinities(solver: Solver) -> None:
    for schedule in (ZERO_SNR, FLOW):
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_euler_in_straight_coordinates_is_ddim(name: str, kind: Kind) -> None:
    if kind == "epsilon":
        name = "vp"  # at pure noise, where the others start, a noise prediction says nothing of the data
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), SCHEDULES[name], kind)
    times = SCHEDULES[name].sampling_times(7)
    found, expected = (solver(teacher, SCHEDULES[name], start((2, 3, 4)), times) for solver in (euler, ddim))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 5, 12])
def test_on_a_flow_schedule_euler_and_heun_are_diffusers_own(steps: int, shift: float) -> None:
    schedule = FlowSchedule(1000, shift)
    teacher = MixtureDenoiser(Mixture.random(3, (2, 3, 4), rng()), schedule, "flow_prediction")

    def network(x: Tensor, sigma: Tensor) -> Tensor:
        """Asked at t, on (1 - t) x_0 + t e."""
        t = sigma.double().expand(2)
        return teacher(x / schedule.input_scale(schedule.angle(t))[0], t).value

    times = schedule.sampling_times(steps)
    single, double = FlowMatchEulerDiscreteScheduler(shift=shift), FlowMatchHeunDiscreteScheduler()
    single.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    double.sigmas = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
    double.timesteps, double.prev_derivative, double.dt = double.sigmas[:-1] * 1000, None, None
    for solver, scheduler in ((euler, single), (heun, double)):
        x = start((2, 3, 4))
        scheduler.set_begin_index(0)
        for sigma, k in zip(scheduler.sigmas[:-1], scheduler.timesteps, strict=True):
            x = scheduler.step(network(x, sigma), k, x).prev_sample
        found = solver(teacher, schedule, start((2, 3, 4)), times)
        torch.testing.assert_close(found, x.double(), rtol=0, atol=1e-5)
