"""Few-step sampling of a student on its path."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, SchedulerMixin
from torch import Tensor

from raystill.config.digest import canonical
from raystill.flow import paths
from raystill.flow.jumps import Jump, Walk, check_eta, check_jump, held, stop, stops
from raystill.flow.predictions import Latent
from raystill.flow.starts import StartLaw
from raystill.models.denoiser import Denoiser
from raystill.models.lora import Lora, add_adapter, load_adapter
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.scheduler import RayFlowScheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a student gets from one time to the next."""

    jump: Jump = "ode"  # "ode" re-estimates all noise, as stock DDIM does; "anchored" keeps the target mean
    eta: float = 0.0  # share of fresh noise in every jump, 0 (deterministic) to 1

    def __post_init__(self) -> None:
        check_jump(self.jump, self.eta)

    def check(self, path: paths.Path) -> None:
        """Refuse, with UserError, an eta on a path whose jumps carry no noise."""
        check_eta(path, self.jump, self.eta)


ODE = Sampling()
NORMAL = StartLaw()


class Student:
    """A trained adapter merged into its teacher, ready to draw on its path."""

    def __init__(
        self,
        teacher: Path,
        lora: Lora,
        path: paths.Path,
        tensors: Mapping[str, Tensor],
        device: torch.device,
        *,
        sampling: Sampling = ODE,
        start: StartLaw = NORMAL,
    ) -> None:
        sampling.check(path)
        self.path, self.sampling, self.start = path, sampling, start
        self.pipeline: Pipeline = load_pipeline(teacher)
        add_adapter(self.pipeline.unet, lora)
        load_adapter(self.pipeline.unet, tensors)
        self.pipeline.unet.fuse_lora()  # merged: a call costs what the teacher's does
        self.pipeline.to(device)

    @torch.inference_mode()
    def latents(self, normal: Latent, condition: Tensor, steps: int) -> Latent:
        """Clean latents from N(0, I) draws, which the start law turns into starts."""
        denoiser = Denoiser(self.pipeline.unet, self.pipeline.schedule, self.pipeline.kind)
        return sample_student(denoiser, self.path, self.start.apply(normal), condition, steps, self.sampling)


def sample_student(
    student: Denoiser, path: paths.Path, start: Latent, condition: Tensor, steps: int, sampling: Sampling = ODE
) -> Latent:
    """Draw clean latents from starts in `steps` network calls per sample, at the signal-to-noise ratios of the stock
    timesteps; UserError for an eta without effect.

    The ODE jump is stock DDIM at trailing timesteps, on any path. The anchored jump takes the start for the target
    mean; the path's noise, as all fresh noise, is drawn from each start's own bits.
    """
    sampling.check(path)
    schedule = student.schedule
    every = stops(held(path, sampling.jump), schedule, schedule.angle(schedule.sampling_times(steps)))
    walk = Walk.begin(every, sampling.eta, start)
    x = walk.entry()
    for i in range(steps):
        prediction = student.at_angle(x, stop(every, i, len(x)).angle, condition)
        x = walk.jump(i, prediction) if i + 1 < steps else prediction.data
    return x


def scheduler_of(pipeline: Pipeline, path: paths.Path, sampling: Sampling, start: StartLaw) -> SchedulerMixin:
    """The scheduler that samples a student as `sample_student` does in any diffusers pipeline: the stock one where it
    can, else RayFlow's.

    Stable Diffusion pipelines do not take diffusers' own flow-matching scheduler, so flow teachers get RayFlow's too.
    """
    if sampling == ODE and start == NORMAL and isinstance(pipeline.scheduler, DDIMScheduler):
        return pipeline.scheduler
    settings = canonical(path)
    return RayFlowScheduler.from_config(
        pipeline.scheduler.config, path=settings["kind"], sigma=settings.get("sigma", 0.0), jump=sampling.jump,
        eta=sampling.eta, start=start.to_json(),
    )  # fmt: skip


def timesteps_of(scheduler: SchedulerMixin, steps: int) -> tuple[int | float, ...]:
    """The timesteps that a scheduler asks a network at in `steps` steps, noisy end first."""
    scheduler.set_timesteps(steps)
    return tuple(scheduler.timesteps.tolist())


def sampling_json(sampling: Sampling, law: StartLaw) -> dict[str, Any]:
    """How sampling starts, as an adapter's card says it, with the jump where that is not the stock sampler's."""
    return law.to_json() | ({} if sampling == ODE else {"jump": sampling.jump, "eta": sampling.eta})


def read_sampling(start: Mapping[str, Any]) -> tuple[Sampling, StartLaw]:
    """Read what `sampling_json` gave; UserError where it is something else."""
    law = dict(start)
    sampling = Sampling(jump=law.pop("jump", "ode"), eta=law.pop("eta", 0.0))
    return sampling, StartLaw.from_json(law)
