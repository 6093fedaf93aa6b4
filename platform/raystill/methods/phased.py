"""Phased Rectified Diffusion (2410.07303, section 3.2): PeRFlow with pieces that are straight where DDIM is, so that
stock DDIM samples it.

The published code has five phases and a sampler of four steps; here phases are between the K times of the stock
sampler.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name, introduced, introduced_group
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import column, point
from raystill.flow.premetrics import Premetric, PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.solvers import ddim_between
from raystill.flow.times import AnyTimes, UniformTimes
from raystill.flow.windows import SOONEST, constant_of, window_between
from raystill.methods.consistency import grid_of
from raystill.methods.coupling import noise_for
from raystill.methods.method import (
    STUDENT,
    Batch,
    Distillation,
    Given,
    Loss,
    Networks,
    check_jumps,
    check_times,
    whole_steps,
)
from raystill.methods.teaching import Guidance, Teaching, weighted
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasedRectifiedDiffusion(Distillation):
    """Settings of phased Rectified Diffusion."""

    former: ClassVar[str] = "PhasedRectified"

    windows: int = introduced(4)  # K, number of phases
    substeps: int = introduced(8)  # K', DDIM steps of the teacher in a phase
    times: AnyTimes = introduced_group(UniformTimes)
    guidance: Guidance = introduced_group(Guidance)  # of the teacher
    premetric: Premetric = introduced_group(PseudoHuber)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)

    name: ClassVar[str] = "phased"
    paper: ClassVar[str] = "2410.07303"

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, phases without a step of the teacher, and samplers whose jumps cross an edge of a
        phase.
        """
        super(PhasedRectifiedDiffusion, self).check(sampling, lane_size, steps)
        if self.windows < 1 or self.substeps < 1:
            raise UserError(f"method.windows is {self.windows} and method.substeps {self.substeps}; write 1 or more")
        check_jumps(steps, self.windows, "method.windows")

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, more phases than the teacher has times."""
        check_times(teacher.schedule, "method.windows", self.windows)

    @property
    def default_steps(self) -> int:
        """Default sampling steps of the student: the least multiple of the number of phases that is four or more."""
        return whole_steps(self.windows)

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures drawn during training: one step and two in each phase."""
        return (self.windows, 2 * self.windows)

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the teacher's sub-steps, doubled under guidance."""
        return float(self.substeps * self.guidance.branches)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: distance of the student's jump to the phase's lower edge from the teacher's x_e, at
        points of the piece with eps* = (x_e / s_e - x_s / s_s) / (kappa_e - kappa_s) (equation 4).
        """
        x_0, schedule = batch["x_0"], given.schedule
        draw = self.times.draw(len(x_0), DiffusionPath(), schedule, rng)
        t = draw.t.clamp(min=SOONEST)
        window = window_between(grid_of(schedule, self.windows), t)
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        eps = noise_for(x_0, rng, immiscible=self.immiscible)
        a_s, a_e = schedule.angle(window.start), schedule.angle(window.end)
        with torch.no_grad():
            x_s = point(x_0, eps, a_s)
            x_e = ddim_between(teaching, schedule, x_s, window.start, window.end, self.substeps)
            noise = constant_of("ddim_eps", schedule, window, x_s, x_e)
            data = (column(a_s.sin(), x_s) * x_e - column(a_e.sin(), x_s) * x_s) / column((a_s - a_e).sin(), x_s)
            x = point(data, noise, schedule.angle(t))
        found = given.denoiser(networks[STUDENT])(x, t, batch["condition"]).moved(a_e)
        return {STUDENT: Loss(weighted(self.premetric.per_sample(found - x_e), draw.weight), times=t)}


__getattr__ = by_former_name(globals())
