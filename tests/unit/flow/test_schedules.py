"""Continuous schedules and their formulas against diffusers' discrete ones."""

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from raystill.flow.schedules import (
    DiffusionSchedule,
    FlowSchedule,
    Schedule,
    check_times,
    cosine_alphas,
    cumulative_alphas,
    linear_alphas,
    scaled_linear_alphas,
    zero_terminal_snr,
)
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


@pytest.mark.parametrize("alphas", [[0.5, 0.5], [0.5, 0.6], [0.5, -0.1], [1.0, 0.5], [1.5, 0.5], [0.5, float("nan")]])
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


def near_diffusers(found: torch.Tensor, scheduler: DDIMScheduler) -> None:
    torch.testing.assert_close(found, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=2e-7)  # theirs are float32


@pytest.mark.parametrize("steps", [10, 1000])
def test_formulas_are_diffusers_own(zero_snr: bool, steps: int) -> None:
    finish = zero_terminal_snr if zero_snr else torch.Tensor.clone
    settings = {"num_train_timesteps": steps, "rescale_betas_zero_snr": zero_snr}
    linear = DDIMScheduler(beta_schedule="linear", beta_start=0.002, beta_end=0.03, **settings)
    near_diffusers(finish(linear_alphas(steps, 0.002, 0.03)), linear)
    scaled = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.02, **settings)
    near_diffusers(finish(scaled_linear_alphas(steps, 0.001, 0.02)), scaled)
    near_diffusers(finish(cosine_alphas(steps)), DDIMScheduler(beta_schedule="squaredcos_cap_v2", **settings))
    betas = [0.01 + 0.9 * i / steps for i in range(10)]
    trained = DDIMScheduler(**{**settings, "num_train_timesteps": 10}, trained_betas=betas)
    near_diffusers(finish(cumulative_alphas(torch.tensor(betas, dtype=torch.float64))), trained)


def test_formulas_have_the_defaults_of_their_papers() -> None:
    near_diffusers(linear_alphas(), DDIMScheduler())
    near_diffusers(scaled_linear_alphas(), stock())


def test_zero_terminal_snr_keeps_the_first_level_and_ends_at_pure_noise() -> None:
    alphas = scaled_linear_alphas()
    rescaled = zero_terminal_snr(alphas)
    assert float(rescaled[-1]) == 0
    assert float(rescaled[0]) == pytest.approx(float(alphas[0]), rel=1e-14)
    assert bool((rescaled.diff() < 0).all())
    end = DiffusionSchedule.from_alphas(rescaled).angle(torch.ones(1, dtype=torch.float64))
    assert float(end) == pytest.approx(torch.pi / 2, abs=1e-15)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize("steps", [1, 2, 5, 1000])
def test_a_flow_schedule_s_sampling_times_are_those_of_its_stock_scheduler(steps: int, shift: float) -> None:
    # As the flow pipelines of diffusers ask it: with evenly spaced sigmas from 1 that the scheduler shifts.
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[1 - i / steps for i in range(steps)])
    schedule = FlowSchedule(1000, shift)
    times = schedule.sampling_times(steps)
    torch.testing.assert_close(times, scheduler.sigmas.double(), rtol=0, atol=2e-7)
    torch.testing.assert_close(schedule.timestep(times[:-1]), scheduler.timesteps.double(), rtol=0, atol=2e-4)
    assert (float(times[0]), float(times[-1])) == (1, 0)


@given(st.floats(0, 1))
def test_a_flow_schedule_is_the_straight_line_scaled_to_unit_length(t: float) -> None:
    schedule, time = FlowSchedule(), torch.tensor([t], dtype=torch.float64)
    angle = schedule.angle(time)
    scale = float(schedule.input_scale(angle))
    assert float(angle.cos()) * scale == pytest.approx(1 - t, abs=1e-15)
    assert float(angle.sin()) * scale == pytest.approx(t, abs=1e-15)
    assert float(schedule.time_of(angle)) == pytest.approx(t, abs=1e-15)
    assert (float(schedule.signal(time)), float(schedule.noise(time))) == (1 - t, t)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_is_not_positive_is_refused(shift: float) -> None:
    with pytest.raises(ValueError, match="greater than 0"):
        FlowSchedule(shift=shift)


@pytest.mark.parametrize("t", [[-1e-9], [1.0000001], [0.5, 2.0], [float("nan")]])
@pytest.mark.parametrize("ask", ["angle", "signal", "noise"])
@pytest.mark.parametrize(
    "schedule", [FlowSchedule(), DiffusionSchedule.from_alphas(cosine_alphas(9))], ids=["fm", "vp"]
)
def test_bad_times_are_refused_with_what_to_write(schedule: Schedule, ask: str, t: list[float]) -> None:
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]; found torch\.float64.*write for example torch\.full"):
        getattr(schedule, ask)(torch.tensor(t, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(), (2, 1), (3, 1, 1, 1)])
def test_times_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    # Their annotation says so as well, but only while tests run: here, as for users, the check itself.
    with pytest.raises(ValueError, match=r"of shape \(batch,\)"):
        check_times.__wrapped__(torch.zeros(shape, dtype=torch.float64))  # type: ignore[attr-defined]
