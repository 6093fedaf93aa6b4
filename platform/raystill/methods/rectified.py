"""Rectified Diffusion (2410.07303): training on the teacher's own pairs of noise and data along the teacher's own path,
then consistency along this path.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name, introduced, introduced_group
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import Latent, point
from raystill.flow.premetrics import Premetric, PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.flow.times import AnyTimes, UniformTimes
from raystill.methods.consistency import consistency_loss, drawn, grid_of
from raystill.methods.method import STUDENT, Batch, Distillation, Given, Loss, Networks, check_times
from raystill.methods.teaching import weighted
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class RectifiedDiffusion(Distillation):
    """Settings of Rectified Diffusion. The paper writes a squared error of the noise, its code the pseudo-Huber
    distance of x_0 that is taken here; the code's other beta schedule is left to the teacher.

    Of the consistency stage there is neither code nor an equation: here f(x_t) is to be f(x_t') of the next point below
    on the pair's own path.
    """

    former: ClassVar[str] = "Rectified"

    times: AnyTimes = introduced_group(UniformTimes)
    premetric: Premetric = introduced_group(PseudoHuber)
    # step of training from which neighbours on a pair's path are to agree
    consistency_from: int | None = introduced(None)
    intervals: int = introduced(40)  # number of intervals of the path; neighbours are the two ends of one

    name: ClassVar[str] = "rectified"
    paper: ClassVar[str] = "2410.07303"
    needs: ClassVar[tuple[str, ...]] = ("x_0", "target_mean", "condition")
    asks_teacher: ClassVar[bool] = False  # its pairs are stored

    @property
    def last_stage(self) -> tuple[str, int]:
        """Dotted path of the setting that begins the consistency stage, and the training step at which the stage
        begins.
        """
        return "method.consistency_from", self.consistency_from or 0

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a grid that is finer than the teacher's times."""
        check_times(teacher.schedule, "method.intervals", self.intervals)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, a stage that begins before the training, and a path without intervals."""
        super(RectifiedDiffusion, self).check(sampling, lane_size, steps)
        if (self.consistency_from is not None and self.consistency_from < 0) or self.intervals < 1:
            raise UserError(
                f"method.consistency_from is {self.consistency_from} and method.intervals {self.intervals}; write a "
                "step, 0 or later, and at least 1 interval"
            )

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: distance of x_0(x_t) from x_0 at x_t = s_t x_0 + n_t e of the pair, t uniform (algorithm
        4); in the second stage of f(x_t) from f(x_t').
        """
        x_0, noise, schedule = batch["x_0"], batch["target_mean"], given.schedule
        if self.consistency_from is not None and step >= self.consistency_from:
            draw = drawn(grid_of(given.schedule, self.intervals), torch.zeros_like, rng, len(x_0), any_landing=False)
            lead = partial(_on_the_pair_s_path, x_0, noise, schedule)
            return {STUDENT: consistency_loss(networks, given, batch, draw, lead, noise, self.premetric)}
        law = self.times.draw(len(x_0), DiffusionPath(), schedule, rng)
        t = law.t
        x = point(x_0, noise, schedule.angle(t))
        found = given.denoiser(networks[STUDENT])(x, t, batch["condition"])
        return {STUDENT: Loss(weighted(self.premetric.per_sample(found.data - x_0), law.weight), times=t)}


def _on_the_pair_s_path(x_0: Latent, noise: Latent, schedule: Schedule, _x: Latent, _t: Times, led: Times) -> Latent:
    return point(x_0, noise, schedule.angle(led))


__getattr__ = by_former_name(globals())
