"""Continuous schedules against diffusers' discrete ones."""

import pytest
import torch
from diffusers import DDIMScheduler

from raystill.flow.schedules import DiffusionSchedule, Schedule
from raystill.models.fresh import stable_diffusion_scheduler


def stock(zero_snr: bool = False) -> DDIMScheduler:
    return DDIMScheduler.from_config(stable_diffusion_scheduler("v_prediction").config, rescale_betas_zero_snr=zero_snr)


@pytest.fixture(params=[False, True], ids=["sd", "zero-snr"])
def zero_snr(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def knots(schedule: Schedule) -> torch.Tensor:
    return torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps


def test_signal_squared_is_diffusers_alphas_cumprod_at_the_knots(zero_snr: bool) -> None:
    alphas = stock(zero_snr).alphas_cumprod.double()
    schedule = DiffusionSchedule.from_alphas(alphas)
    assert schedule.steps == 1000
    torch.testing.assert_close(schedule.signal(knots(schedule)) ** 2, alphas, rtol=0, atol=1e-12)
    torch.testing.assert_close(schedule.noise(knots(schedule)) ** 2, 1 - alphas, rtol=0, atol=1e-12)


def test_variance_is_preserved_between_the_knots_and_data_is_at_zero(zero_snr: bool) -> None:
    schedule = DiffusionSchedule.from_alphas(stock(zero_snr).alphas_cumprod)
    t = torch.linspace(0, 1, 4321, dtype=torch.float64)
    s, n = schedule.signal(t), schedule.noise(t)
    torch.testing.assert_close(s**2 + n**2, torch.ones_like(t))
    assert (float(s[0]), float(n[0])) == (1, 0)
    assert bool((s.diff() < 0).all())
    assert bool((n.diff() > 0).all())


def test_time_of_inverts_the_angle(zero_snr: bool) -> None:
    schedule = DiffusionSchedule.from_alphas(stock(zero_snr).alphas_cumprod)
    t = torch.cat([knots(schedule), torch.rand(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(schedule.time_of(schedule.angle(t)), t, rtol=0, atol=1e-12)
    beyond = torch.tensor([-0.1, 1.6], dtype=torch.float64)
    assert schedule.time_of(beyond).tolist() == [0, 1]


def test_timestep_at_the_knots_is_the_discrete_step_in_single_precision(zero_snr: bool) -> None:
    schedule = DiffusionSchedule.from_alphas(stock(zero_snr).alphas_cumprod)
    asked = schedule.timestep(schedule.time_of(schedule.angle(knots(schedule)))).float()
    assert asked.tolist() == list(range(1000))
    assert schedule.timestep(torch.tensor([0.0, 0.0005], dtype=torch.float64)).tolist() == [0, 0]


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 8, 12, 25, 48, 50, 96, 1000])
def test_trailing_times_are_diffusers_trailing_timesteps(steps: int) -> None:
    scheduler = stock()
    scheduler.set_timesteps(steps)
    times = DiffusionSchedule.from_alphas(scheduler.alphas_cumprod).sampling_times(steps)
    assert times[-1] == 0
    assert ((times[:-1] * 1000).round().long() - 1).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [0, 1001])
def test_step_counts_beyond_the_schedule_are_refused(steps: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 1000 steps, found {steps}"):
        DiffusionSchedule.from_alphas(stock().alphas_cumprod).sampling_times(steps)


@pytest.mark.parametrize("alphas", [[0.5, 0.5], [0.5, 0.6], [0.5, -0.1], [1.0, 0.5], [1.5, 0.5]])
def test_alphas_that_are_no_schedule_are_refused(alphas: list[float]) -> None:
    with pytest.raises(ValueError, match="decrease strictly"):
        DiffusionSchedule.from_alphas(torch.tensor(alphas))


@pytest.mark.parametrize("t", [[-1e-9], [1.0000001], [0.5, 2.0]])
def test_times_outside_the_unit_interval_are_refused(t: list[float]) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        DiffusionSchedule.from_alphas(stock().alphas_cumprod).angle(torch.tensor(t, dtype=torch.float64))


def test_single_precision_times_are_refused() -> None:
    with pytest.raises(ValueError, match="float64"):
        DiffusionSchedule.from_alphas(stock().alphas_cumprod).angle(torch.tensor([0.5]))
