"""What a diffusers scheduler's settings say of a teacher: its schedule, what its network predicts, and which stock
scheduler samples it in few steps.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import diffusers
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    SchedulerMixin,
)

from raystill.config.errors import UserError
from raystill.flow.predictions import VANISHING, Kind
from raystill.flow.schedules import (
    Alphas,
    DiffusionSchedule,
    FlowSchedule,
    Schedule,
    cosine_alphas,
    cumulative_alphas,
    linear_alphas,
    scaled_linear_alphas,
    zero_terminal_snr,
)

StockSampler: TypeAlias = DDIMScheduler | FlowMatchEulerDiscreteScheduler
FLOW_MATCHING = (FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler, FlowMatchLCMScheduler)
DIFFUSION_KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")
FLOW_KINDS: tuple[Kind, ...] = ("flow_prediction",)  # all that FlowMatchEulerDiscreteScheduler takes
FILE = "scheduler/scheduler_config.json"
LARGEST_BETA = 1 - 2**-24  # below 1 in float32, in which diffusers keeps betas
CLOSE = 1e-3  # radians; schedules whose angles differ by less count as equal: multistep ones have no alpha of 0
# Settings that change the network's inputs: the one value that is supported, and what to do about others.
ONLY: dict[str, tuple[Any, str]] = {
    "use_dynamic_shifting": (False, "with the shift of your picture size, exp(mu), as `shift` or `flow_shift`"),
    "invert_sigmas": (False, "for a network whose time runs from noise to data, turn it round first"),
    "timestep_type": ("discrete", "networks that are told 0.25 log sigma are not supported"),
    "snr_shift_scale": (1.0, "with the shifted schedule's betas as `trained_betas`"),
}


def schedule_of(scheduler: SchedulerMixin) -> Schedule:
    """The schedule that a network was trained on, from its scheduler's settings; UserError where they say none.

    How the scheduler spaces its own steps (Karras, leading ...) is no part of it; a flow scheduler's static shift is,
    for the sake of `sampling_times`. Where the last alpha is 0, diffusers' multistep schedulers write 2^-24 instead.
    """
    check_settings(scheduler.config, f"{_name(scheduler)} in {FILE}")
    if _flows(scheduler):
        return FlowSchedule(int(scheduler.config["num_train_timesteps"]), _shift(scheduler))
    try:
        return DiffusionSchedule.from_alphas(_alphas(scheduler))
    except ValueError as error:
        raise UserError(
            f"the betas of the {_name(scheduler)} make no schedule: {error}; expected betas in (0, 1), "
            f"only the last of them may be 1, in {FILE}"
        ) from error


def kind_of(scheduler: SchedulerMixin) -> Kind:
    """What a network predicts, by its scheduler's `prediction_type`; UserError where it is unknown or does not fit the
    schedule.
    """
    flows = isinstance(scheduler, FLOW_MATCHING)
    found = scheduler.config.get("prediction_type", "flow_prediction" if flows else None)
    known = FLOW_KINDS if _flows(scheduler) else DIFFUSION_KINDS
    for kind in known:
        if kind == found:
            return kind
    schedule = "a flow-matching schedule" if _flows(scheduler) else "a diffusion schedule"
    hint = ', with `"use_flow_sigmas": true`' if found == "flow_prediction" and not _flows(scheduler) else ""
    raise UserError(
        f"the {_name(scheduler)} in {FILE} has prediction_type {found!r}; expected, on {schedule}, one of "
        f"{', '.join(known)}. Write there what the network was trained to predict{hint}"
    )


def same_schedule(one: SchedulerMixin, other: SchedulerMixin) -> bool:
    """Whether networks of two schedulers' settings predict the same kind of thing on the same schedule."""
    if kind_of(one) != kind_of(other):
        return False
    ours, theirs, t = schedule_of(one), schedule_of(other), torch.linspace(0, 1, 9, dtype=torch.float64)
    alike = type(ours) is type(theirs) and ours.steps == theirs.steps
    return alike and float((ours.angle(t) - theirs.angle(t)).abs().max()) < CLOSE


def stock_sampler(scheduler: SchedulerMixin) -> StockSampler:
    """The first-order scheduler of diffusers on the same schedule and kind: DDIM at trailing timesteps down to clean
    data for diffusion teachers, Euler for flow-matching ones; UserError where the settings say too little.
    """
    kind, config = kind_of(scheduler), scheduler.config
    _check_start(scheduler, kind)
    if _flows(scheduler):
        steps = int(config["num_train_timesteps"])
        flow: StockSampler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps, shift=_shift(scheduler))
        return flow
    # Not from_config: it replaces what the other class took from its own defaults by DDIM's defaults.
    ddim: StockSampler = DDIMScheduler(
        num_train_timesteps=config["num_train_timesteps"],
        beta_start=config["beta_start"],
        beta_end=config["beta_end"],
        beta_schedule=config["beta_schedule"],
        trained_betas=config.get("trained_betas"),
        rescale_betas_zero_snr=bool(config.get("rescale_betas_zero_snr")),
        prediction_type=kind,
        steps_offset=1,  # without effect on trailing spacing; diffusers warns of any other
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )
    return ddim


def schedule_settings(stock: DDIMScheduler) -> dict[str, Any]:
    """The settings that define a network's schedule and prediction type, under the names of diffusers' schedulers."""
    names = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    return {name: stock.config[name] for name in (*names, "rescale_betas_zero_snr")}


def ddim_sampler(stock: DDIMScheduler) -> DPMSolverMultistepScheduler:
    """DDIM between raystill's own times at every step count, by diffusers alone: DPM-Solver++ of first order, which is
    DDIM (2211.01095, section 4), at trailing timesteps down to clean data.

    `DDIMScheduler.step` goes from t to t - K // steps, which is not the next timestep where the count does not divide K
    (diffusers #9261). Where the last alpha is 0, `rescale_betas_zero_snr` writes 2^-24, by which pictures differ by up
    to 1e-3: there the betas themselves are listed.
    """
    settings, alphas = schedule_settings(stock), _alphas(stock)
    betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
    if betas[-1] > LARGEST_BETA:
        listed = {"trained_betas": betas.clamp(max=LARGEST_BETA).tolist(), "rescale_betas_zero_snr": False}
        settings |= listed
    return DPMSolverMultistepScheduler(
        **settings, solver_order=1, algorithm_type="dpmsolver++", timestep_spacing="trailing", final_sigmas_type="zero",
        steps_offset=1,  # without effect on trailing spacing; pipelines warn of any other
        lambda_min_clipped=-100.0,  # below every half log-SNR; the class's own -inf is no JSON
    )  # fmt: skip


def read_scheduler(directory: Path) -> SchedulerMixin:
    """Read and check the scheduler of a pipeline's directory; UserError, with the directory, where diffusers has no
    such class or its settings are not understood.
    """
    name = json.loads((directory / "model_index.json").read_text())["scheduler"][1]
    kind: Any = getattr(diffusers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, SchedulerMixin)
    if not known:
        raise UserError(
            f"teacher {str(directory)!r} names the scheduler {name!r}, which diffusers {diffusers.__version__} does "
            "not have; write one of its own, such as DDIMScheduler, into model_index.json and its settings into "
            f"{FILE}"
        )
    if not (directory / FILE).is_file():
        raise UserError(f"teacher {str(directory)!r} has no {FILE}; write it with {name}.save_pretrained")
    try:
        scheduler: SchedulerMixin = kind.from_pretrained(directory, subfolder="scheduler", local_files_only=True)
        stock_sampler(scheduler)
    except (UserError, NotImplementedError) as error:  # the second: a beta_schedule that the class does not know
        raise UserError(f"teacher {str(directory)!r}: {error}") from error
    return scheduler


def _alphas(scheduler: SchedulerMixin) -> Alphas:
    """Cumulative alphas by the scheduler's own formula; UserError for a scheduler whose formula is unknown."""
    config = scheduler.config
    found = config.get("beta_schedule")
    formulas = {"linear": linear_alphas, "scaled_linear": scaled_linear_alphas}
    if config.get("trained_betas") is not None:
        alphas = cumulative_alphas(_trained_betas(scheduler))
    elif found in formulas:
        alphas = formulas[found](config["num_train_timesteps"], config["beta_start"], config["beta_end"])
    elif found == "squaredcos_cap_v2":
        alphas = cosine_alphas(config["num_train_timesteps"])
    else:
        raise UserError(
            f"the {_name(scheduler)} in {FILE} has beta_schedule {found!r}; expected one of linear, scaled_linear, "
            "squaredcos_cap_v2, or a DDIMScheduler with the K betas themselves as `trained_betas`"
        )
    return zero_terminal_snr(alphas) if config.get("rescale_betas_zero_snr") else alphas


def _trained_betas(scheduler: SchedulerMixin) -> Alphas:
    """The betas that a scheduler's settings list; UserError where there is not one for each training step."""
    betas = torch.as_tensor(scheduler.config["trained_betas"], dtype=torch.float64)
    if len(betas) != scheduler.config["num_train_timesteps"]:
        raise UserError(
            f"the {_name(scheduler)} in {FILE} has {len(betas)} trained_betas and num_train_timesteps "
            f"{scheduler.config['num_train_timesteps']}; write the same number"
        )
    return betas


def check_settings(config: Mapping[str, Any], name: str) -> None:
    """Refuse, with UserError, settings of a scheduler that change the network's inputs in an unsupported way; `name` is
    the scheduler's name in messages.
    """
    for key, (only, advice) in ONLY.items():
        found = config.get(key, only)
        if found != only:
            raise UserError(
                f"the {name} has {key} {found!r}; expected {only!r}. Write {json.dumps({key: only})} there, {advice}"
            )


def _check_start(scheduler: SchedulerMixin, kind: Kind) -> None:
    """Refuse, with UserError, a noise prediction on a schedule that starts at pure noise: it says nothing of data."""
    end = schedule_of(scheduler).angle(torch.ones(1, dtype=torch.float64))
    if kind == "epsilon" and float(end.cos()) < VANISHING:
        raise UserError(
            f"the {_name(scheduler)} in {FILE} has prediction_type 'epsilon' and zero terminal SNR, where a noise "
            "prediction says nothing of the data; expected v_prediction, or rescale_betas_zero_snr false"
        )


def _flows(scheduler: SchedulerMixin) -> bool:
    return isinstance(scheduler, FLOW_MATCHING) or bool(scheduler.config.get("use_flow_sigmas"))


def _shift(scheduler: SchedulerMixin) -> float:
    """Static shift of a flow-matching scheduler; UserError where it is not positive."""
    key = "shift" if isinstance(scheduler, FLOW_MATCHING) else "flow_shift"
    shift = scheduler.config.get(key)
    if shift is None or not shift > 0:
        raise UserError(f"the {_name(scheduler)} in {FILE} has {key} {shift!r}; expected a number above 0, 1 for none")
    return float(shift)


def _name(scheduler: SchedulerMixin) -> str:
    return type(scheduler).__name__
