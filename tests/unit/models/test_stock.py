"""What schedulers' settings say: every class of diffusers that has a training schedule, against its own numbers."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from raystill.config.errors import UserError
from raystill.flow.predictions import Kind
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule
from raystill.models.stock import FLOW_MATCHING, kind_of, schedule_of, stock_sampler

DIFFUSION = [
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "SASolverScheduler", "LCMScheduler", "TCDScheduler",
]  # fmt: skip
ZERO_SNR = [
    "DDIMScheduler", "DDPMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LCMScheduler", "TCDScheduler",
]  # fmt: skip
FLOW_SIGMAS = [
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    "SASolverScheduler",
]  # fmt: skip
BETAS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": [0.001 * (k + 1) for k in range(50)], "num_train_timesteps": 50},
]


def made(name: str, **settings: Any) -> Any:
    return getattr(diffusers, name)(**settings)


def alphas_of(schedule: object) -> torch.Tensor:
    assert isinstance(schedule, DiffusionSchedule)
    return schedule.angles[1:].cos() ** 2


@pytest.mark.parametrize("betas", BETAS, ids=["own default", "scaled", "cosine", "trained"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_the_schedule_is_the_scheduler_s_own(name: str, betas: dict[str, Any]) -> None:
    scheduler = made(name, **betas)
    expected = scheduler.alphas_cumprod.double()
    torch.testing.assert_close(alphas_of(schedule_of(scheduler)), expected, rtol=2e-4, atol=2e-7)
    carried = stock_sampler(scheduler)
    assert type(carried) is DDIMScheduler
    assert torch.equal(carried.alphas_cumprod, scheduler.alphas_cumprod)
    assert kind_of(carried) == kind_of(scheduler) == "epsilon"


@pytest.mark.parametrize("name", ZERO_SNR)
def test_zero_terminal_snr_is_read_with_a_last_alpha_of_zero(name: str) -> None:
    scheduler = made(name, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    found = alphas_of(schedule_of(scheduler))
    assert float(found[-1]) < 1e-30
    torch.testing.assert_close(found, scheduler.alphas_cumprod.double(), rtol=2e-4, atol=2e-7)
    assert alphas_of(schedule_of(stock_sampler(scheduler))).equal(found)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_kind_is_the_prediction_type(kind: Kind) -> None:
    for name in ("DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"):
        assert kind_of(made(name, prediction_type=kind)) == kind
        assert kind_of(stock_sampler(made(name, prediction_type=kind))) == kind


def test_what_a_file_leaves_out_is_its_own_class_s_default(tmp_path: Path) -> None:
    # diffusers' from_config would put DDIM's beta_start, 0.0001, in the place of Heun's 0.00085.
    (tmp_path / "scheduler_config.json").write_text(json.dumps({"_class_name": "HeunDiscreteScheduler"}))
    scheduler = HeunDiscreteScheduler.from_pretrained(tmp_path)
    assert stock_sampler(scheduler).config.beta_start == 0.00085
    torch.testing.assert_close(stock_sampler(scheduler).alphas_cumprod, scheduler.alphas_cumprod)


def test_the_carried_sampler_jumps_at_trailing_steps_down_to_clean_data() -> None:
    config = stock_sampler(EulerDiscreteScheduler(timestep_spacing="leading", use_karras_sigmas=True)).config
    assert (config.timestep_spacing, config.set_alpha_to_one, config.clip_sample) == ("trailing", True, False)


@pytest.mark.parametrize("kind", FLOW_MATCHING)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching_schedulers_are_straight(kind: type[SchedulerMixin], shift: float) -> None:
    scheduler = kind(num_train_timesteps=500, shift=shift)
    assert (schedule_of(scheduler), kind_of(scheduler)) == (FlowSchedule(500, shift), "flow_prediction")
    carried = stock_sampler(scheduler)
    assert type(carried) is FlowMatchEulerDiscreteScheduler
    assert (schedule_of(carried), kind_of(carried)) == (FlowSchedule(500, shift), "flow_prediction")


@pytest.mark.parametrize("name", FLOW_SIGMAS)
def test_multistep_schedulers_with_flow_sigmas_are_straight(name: str) -> None:
    scheduler = made(name, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.5)
    assert (schedule_of(scheduler), kind_of(scheduler)) == (FlowSchedule(1000, 2.5), "flow_prediction")
    assert schedule_of(stock_sampler(scheduler)) == FlowSchedule(1000, 2.5)


@pytest.mark.parametrize("found", ["noise", "flow_prediction", None])
def test_a_diffusion_scheduler_with_an_unknown_prediction_type_is_refused(found: str | None) -> None:
    hint = r'with `"use_flow_sigmas": true`$' if found == "flow_prediction" else "trained to predict$"
    scheduler = UniPCMultistepScheduler(prediction_type=found)
    with pytest.raises(UserError, match=rf"prediction_type {found!r}; expected, on a diffusion .*{hint}"):
        stock_sampler(scheduler)


@pytest.mark.parametrize("found", ["epsilon", "v_prediction", "sample"])
def test_other_predictions_on_a_flow_schedule_are_refused(found: str) -> None:
    with pytest.raises(UserError, match="on a flow-matching schedule, one of flow_prediction"):
        stock_sampler(DPMSolverMultistepScheduler(prediction_type=found, use_flow_sigmas=True))


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of numpy, in diffusers

REFUSED: list[tuple[SchedulerMixin, str]] = [
    (FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), r'"use_dynamic_shifting": false.*exp\(mu\)'),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas True; expected False"),
    (FlowMatchEulerDiscreteScheduler(shift=0.0), "has shift 0.0; expected a number above 0"),
    (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "0.25 log sigma"),
    (diffusers.CogVideoXDDIMScheduler(), "snr_shift_scale 3.0; expected 1.0"),
    (DDPMScheduler(beta_schedule="sigmoid"), "beta_schedule 'sigmoid'; expected one of linear, scaled_linear"),
    (DDPMScheduler(trained_betas=[0.1, 0.0, 0.2], num_train_timesteps=3), r"make no schedule.*betas in \(0, 1\)"),
    (DDPMScheduler(trained_betas=[0.1, 0.2]), "has 2 trained_betas and num_train_timesteps 1000"),
    (DDIMScheduler(rescale_betas_zero_snr=True), "'epsilon' and zero terminal SNR"),
    (EDMEulerScheduler(), "beta_schedule None"),
    (IPNDMScheduler(), "prediction_type None"),
]


@pytest.mark.parametrize(("scheduler", "expected"), REFUSED, ids=[match for _, match in REFUSED])
def test_settings_that_say_too_little_are_refused(scheduler: SchedulerMixin, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        stock_sampler(scheduler)
