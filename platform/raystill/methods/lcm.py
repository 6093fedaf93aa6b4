"""LCM, latent consistency models, and LCM-LoRA (2310.04378, 2311.05556): one function gives x_0 from every point of the
guided teacher's trajectory.

Departures: f is the estimate of x_0 itself and the point itself at t = 0, from which the paper's c_skip and c_out
differ by 7e-6 on its own grid; the grid ends at clean data, where the published code ends at the first step's noise
level; the student is not told w, as in LCM-LoRA, so that w is one number by default.

An error that all times share is seen by the lowest interval alone, and without an average of the student as the target
it can grow: the loss rises, and pictures get worse the longer or faster the training is (docs/results/methods.md).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.premetrics import Premetric, PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.flow.starts import StartLaw
from raystill.methods.consistency import (
    check_grid,
    check_lcm_grid,
    check_lcm_teacher,
    consistency_loss,
    drawn,
    grid_of,
)
from raystill.methods.coupling import noise_for
from raystill.methods.method import STUDENT, Batch, Distillation, Given, Loss, Networks
from raystill.methods.teaching import Guidance, Teaching
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, lcm_scheduler
from raystill.models.stock import StockSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class LCM(Distillation):
    """Settings of LCM; the published LoRA training has w of 8.5, or 6 to 16, in this convention."""

    intervals: int = introduced(50)  # N: t' is one of N equal steps of the teacher's DDIM below t
    guidance: Guidance = introduced_group(Guidance)  # of the teacher
    premetric: Premetric = introduced_group(PseudoHuber)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)
    # decay of the target network's average; None: the student itself is the target, as for adapters
    target_decay: float | None = introduced(None)

    name: ClassVar[str] = "lcm"
    paper: ClassVar[str] = "2310.04378"
    takes_eta: ClassVar[bool] = False

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, more sampling steps than the grid has intervals, and settings of the grid out of
        range.
        """
        super(LCM, self).check(sampling, lane_size, steps)
        check_grid(self.intervals, self.target_decay)
        check_lcm_grid(self.intervals, steps)

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher at whose timesteps LCM's scheduler cannot ask on the grid
        (`check_lcm_teacher`).
        """
        check_lcm_teacher(teacher.schedule, self.intervals)

    def trained_times(self, schedule: Schedule) -> Times:
        """The times of the method's grid, above 0."""
        return grid_of(schedule, self.intervals)[1:]

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps: `target_decay` at every step."""
        return self.target_decay

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: one guided DDIM step."""
        return float(self.guidance.branches)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss (algorithm 1): distance of f(x_t, t) from the target network's f(x', t'), with x' one
        guided DDIM step of the teacher below x_t.
        """
        draw = drawn(
            grid_of(given.schedule, self.intervals), torch.zeros_like, rng, len(batch["x_0"]), any_landing=False
        )
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        noise = noise_for(batch["x_0"], rng, immiscible=self.immiscible)
        return {STUDENT: consistency_loss(networks, given, batch, draw, teaching.step, noise, self.premetric)}

    def noisy(self, sampling: Sampling) -> bool:
        """Always true: LCM's sampler noises every estimate of x_0 anew."""
        return True

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """LCM's own scheduler, which estimates x_0, noises the estimate anew, and so on."""
        return lcm_scheduler(stock, self.intervals)
