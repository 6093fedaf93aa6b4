"""SCott, stochastic consistency distillation (2403.01505): LCM whose teacher leads to t' by a stochastic solver in
several sub-steps.

Neither code nor the paper's text was available, and two readings of it disagree about the solver: here it is DDIM with
a share `eta` of DDPM's noise (2010.02502, equation 16), which the paper's table compares. With the whole reverse SDE
the optimum would be the mean of x_0 given the point, which is blurred: the noise is kept weak. Its adversarial term is
left out.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from raystill.config.errors import UserError
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
class SCott(Distillation):
    """Settings of SCott, stochastic consistency distillation."""

    intervals: int = introduced(40)  # N: t' is one of N equal intervals below t
    substeps: int = introduced(3)  # h, steps of the teacher's solver from t to t'
    eta: float = introduced(0.2)  # share of DDPM's noise in the solver: 0 is DDIM, 1 the whole reverse SDE (DDPM)
    guidance: Guidance = introduced_group(Guidance)  # of the teacher
    premetric: Premetric = introduced_group(PseudoHuber)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)
    # decay of the target network's average; None: the student itself is the target, as for adapters
    target_decay: float | None = introduced(None)

    name: ClassVar[str] = "scott"
    paper: ClassVar[str] = "2403.01505"
    takes_eta: ClassVar[bool] = False

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, a solver without steps or with an eta outside [0, 1], and more sampling steps than
        the grid has intervals.
        """
        super(SCott, self).check(sampling, lane_size, steps)
        check_grid(self.intervals, self.target_decay)
        check_lcm_grid(self.intervals, steps)
        if self.substeps < 1 or not 0 <= self.eta <= 1:
            raise UserError(
                f"method.substeps is {self.substeps} and method.eta {self.eta}; write at least 1, and a share in [0, 1]"
            )

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
        """Evaluations of the teacher's network per sample and step: the teacher's sub-steps, doubled under guidance."""
        return float(self.substeps * self.guidance.branches)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """LCM's loss with x' from `substeps` noisy steps of the guided teacher."""
        draw = drawn(
            grid_of(given.schedule, self.intervals), torch.zeros_like, rng, len(batch["x_0"]), any_landing=False
        )
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        lead = partial(teaching.noisy_steps, steps=self.substeps, eta=self.eta, rng=rng)
        noise = noise_for(batch["x_0"], rng, immiscible=self.immiscible)
        return {STUDENT: consistency_loss(networks, given, batch, draw, lead, noise, self.premetric)}

    def noisy(self, sampling: Sampling) -> bool:
        """Always true: LCM's sampler noises every estimate of x_0 anew."""
        return True

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """LCM's scheduler, which estimates x_0, noises the estimate anew, and so on."""
        return lcm_scheduler(stock, self.intervals)
