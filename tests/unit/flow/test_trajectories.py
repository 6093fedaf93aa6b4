"""A teacher's trajectory up and down, and means of its noise along it, on the closed-form oracle."""

import math

import pytest
import torch
from tests.oracles.mixtures import Mixture, MixtureDenoiser
from torch import Tensor

from raystill.flow.predictions import Kind, Prediction, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.flow.solvers import Solver, ddim, dpm_solver_2m, euler, heun
from raystill.flow.trajectories import TimeMean, angle_times, constant_noise, invert
from raystill.models.fresh import stable_diffusion_scheduler

VP = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
SHAPES = [(2, 3, 4), (2, 2, 2)]
SOLVERS = [ddim, euler, heun, dpm_solver_2m]
CASES: list[tuple[Schedule, Kind]] = [(VP, "epsilon"), (VP, "v_prediction"), (FlowSchedule(), "flow_prediction")]
IDS = ["epsilon", "v", "flow"]


def start(shape: tuple[int, int, int], count: int = 3) -> Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def oracle(shape: tuple[int, int, int], schedule: Schedule, kind: Kind) -> MixtureDenoiser:
    return MixtureDenoiser(Mixture.random(3, shape, torch.Generator().manual_seed(0)), schedule, kind)


def short_of_data(schedule: Schedule, steps: int, end: float) -> Tensor:
    """Times from 1 to `end` at even angles."""
    first, last = schedule.angle(torch.tensor([1.0, end], dtype=torch.float64)).tolist()
    inner = schedule.time_of(torch.linspace(first, last, steps + 1, dtype=torch.float64))[1:-1]
    return torch.cat([torch.ones(1, dtype=torch.float64), inner, torch.tensor([end], dtype=torch.float64)])


@pytest.mark.parametrize(("schedule", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize(("solver", "order"), [(ddim, 1), (euler, 1), (heun, 2), (dpm_solver_2m, 2)])
def test_inverting_a_sample_gives_its_start_at_the_solvers_order(
    solver: Solver, order: int, schedule: Schedule, kind: Kind
) -> None:
    # From a point short of data, where every solver has its own order; the truth has far finer steps.
    z, teacher = start((2, 3, 4)), oracle((2, 3, 4), schedule, kind)
    x = heun(teacher, schedule, z, short_of_data(schedule, 600, 0.3))
    errors = []
    for steps in (40, 120):
        found = invert(solver, teacher, schedule, x, short_of_data(schedule, steps, 0.3))
        errors.append(float((found - z).square().mean().sqrt()))
    found_order = math.log(errors[0] / errors[1]) / math.log(3)
    if solver is dpm_solver_2m and isinstance(schedule, FlowSchedule):
        assert found_order > 1.3  # to zero signal steps in half log-SNR grow without bound, and the last is DDIM's
    else:
        assert found_order == pytest.approx(order, abs=0.3)
    assert errors[1] < (0.05 if order == 1 else 0.005)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("schedule", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_sampled_down_to_data_is_inverted_from_there(
    solver: Solver, schedule: Schedule, kind: Kind, shape: tuple[int, int, int]
) -> None:
    z, teacher = start(shape), oracle(shape, schedule, kind)
    errors = []
    for steps in (20, 80):
        times = angle_times(schedule, steps, 1.0)
        back = invert(solver, teacher, schedule, solver(teacher, schedule, z, times), times)
        errors.append(float((back - z).square().mean().sqrt()))
    assert errors[1] < 0.45 * errors[0]
    assert errors[1] < 0.12


@pytest.mark.parametrize(("schedule", "kind"), CASES, ids=IDS)
def test_the_constant_noise_of_an_inverted_sample_is_the_one_it_came_by(schedule: Schedule, kind: Kind) -> None:
    z, teacher = start((2, 3, 4)), oracle((2, 3, 4), schedule, kind)
    times = angle_times(schedule, 100, 1.0)
    x_0 = heun(teacher, schedule, z, times)
    back = invert(heun, teacher, schedule, x_0, times)
    mu, one = constant_noise(z, x_0, schedule), schedule.angle(torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(mu, (z - float(one.cos()) * x_0) / float(one.sin()))
    torch.testing.assert_close(constant_noise(back, x_0, schedule), mu, rtol=0, atol=0.02)


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["diffusion", "flow"])
def test_one_ddim_step_with_the_constant_noise_lands_on_the_data(schedule: Schedule) -> None:
    z, x_0 = start((2, 3, 4)), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    mu, one = constant_noise(z, x_0, schedule), schedule.angle(torch.ones(1, dtype=torch.float64))
    signal = max(float(one.cos()), 1e-12)
    if isinstance(schedule, FlowSchedule):
        torch.testing.assert_close(mu, z)  # at pure noise the start is all noise
    else:
        torch.testing.assert_close((z - float(one.sin()) * mu) / signal, x_0)


def noise_of(t: Tensor, x: Tensor) -> Tensor:
    """A noise that is a polynomial of time, for each sample and place its own."""
    return column(t, x) * 2 + torch.arange(x.numel(), dtype=torch.float64).view(x.shape) / 10


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", ["even", "uneven"])
def test_the_mean_over_time_is_a_trapezoid_whatever_the_solver_and_its_steps(solver: Solver, grid: str) -> None:
    x = start((2, 3, 4))
    times = torch.linspace(0, 1, 9, dtype=torch.float64) ** (1 if grid == "even" else 2)

    def linear(at: Tensor, t: Tensor) -> Prediction:
        angle = VP.angle(t)
        return Prediction("epsilon", noise_of(t, at), at, column(angle.cos(), at), column(angle.sin(), at))

    denoise = TimeMean(linear)
    solver(denoise, VP, x, times)
    last = times[-1 if solver is heun else -2]  # the last prediction, which holds up to the end
    expected = noise_of(torch.full((3,), float(last**2 / 2 + (1 - last) * last), dtype=torch.float64), x)
    torch.testing.assert_close(denoise.mean(), expected)


def test_the_mean_over_time_leaves_the_denoiser_as_it_is() -> None:
    teacher = oracle((2, 3, 4), VP, "epsilon")
    times = angle_times(VP, 8, 2.0)
    x_0 = teacher.mixture.draw(3, torch.Generator().manual_seed(3))
    found = invert(heun, TimeMean(teacher), VP, x_0, times)
    torch.testing.assert_close(found, invert(heun, teacher, VP, x_0, times), rtol=0, atol=0)


def test_the_mean_over_time_of_an_inversion_converges() -> None:
    teacher = oracle((2, 3, 4), VP, "v_prediction")
    x_0 = teacher.mixture.draw(3, torch.Generator().manual_seed(3))
    means = {}
    for steps in (20, 80, 640):
        denoise = TimeMean(teacher)
        invert(heun, denoise, VP, x_0, angle_times(VP, steps, 1.5))
        means[steps] = denoise.mean()
    errors = [float((means[n] - means[640]).square().mean().sqrt()) for n in (20, 80)]
    assert errors[1] < 0.4 * errors[0]
    assert errors[1] < 0.02


@pytest.mark.parametrize("schedule", [VP, FlowSchedule()], ids=["diffusion", "flow"])
@pytest.mark.parametrize("rho", [1.0, 2.0, 3.5])
@pytest.mark.parametrize("steps", [1, 2, 7, 300])
def test_angles_are_a_power_of_even_numbers_and_reach_both_ends(steps: int, rho: float, schedule: Schedule) -> None:
    times = angle_times(schedule, steps, rho)
    assert (float(times[0]), float(times[-1]), len(times)) == (1, 0, steps + 1)
    turns = -(schedule.angle(times) ** (1 / rho)).diff()
    torch.testing.assert_close(turns, torch.full_like(turns, float(turns.mean())), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("schedule", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_inverts_too(solver: Solver, schedule: Schedule, kind: Kind) -> None:
    teacher = oracle((2, 3, 4), schedule, kind)
    x_0 = teacher.mixture.draw(3, torch.Generator().manual_seed(3))
    found = invert(solver, teacher, schedule, x_0, schedule.sampling_times(1))
    assert bool(found.isfinite().all())


def test_angles_close_at_data_invert_a_diffusion_teacher_better_than_trailing_times() -> None:
    # A trailing grid leaves the strongest turn, the one at data, to a single step of first order.
    teacher = oracle((2, 3, 4), VP, "v_prediction")
    z = start((2, 3, 4))
    x_0 = heun(teacher, VP, z, angle_times(VP, 400, 1.0))
    error = {}
    for name, times in (("trailing", VP.sampling_times(16)), ("angle", angle_times(VP, 16, 1.0))):
        error[name] = float((invert(dpm_solver_2m, teacher, VP, x_0, times) - z).square().mean().sqrt())
    assert error["angle"] < 0.5 * error["trailing"]
