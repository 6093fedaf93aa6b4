"""Reflow and InstaFlow (2209.03003, 2309.06380): training on the straight path between the teacher's own noise and
data, then distillation to one step.

The network is asked at the signal-to-noise ratio of the straight path's point, so that its first step is the teacher's
own, where InstaFlow presses a noise predictor into a velocity; times end where the teacher's own schedule does, which
for diffusion teachers is a little before pure noise. Reflow is repeated by a run whose teacher is a merged student
(`raystill merge`). InstaFlow's last stage learns from pairs of the reflowed student, first by a squared error and then
by LPIPS: `one_step_from` is its short form, with the first teacher's pairs in the same run; its own is a second run
with `one_step_from=0` whose teacher is the merged student, and there is no LPIPS. The student is sampled by Euler's
steps of the straight path at the stock timesteps, which are stock DDIM's.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.paths import StraightPath, interpolate
from raystill.flow.premetrics import Premetric, SquaredError
from raystill.flow.randomness import RandomStream
from raystill.flow.times import AnyTimes, UniformTimes
from raystill.methods.method import STUDENT, Batch, Distillation, Given, Loss, Networks
from raystill.methods.teaching import weighted
from raystill.models.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Reflow(Distillation):
    """Settings of reflow; with `UShapedTimes` and `VectorHuber` the method is rf++'s (2405.20320) without its LPIPS and
    the factor 1 - t of its loss.
    """

    times: AnyTimes = introduced_group(UniformTimes)
    premetric: Premetric = introduced_group(SquaredError)

    # step of training from which one step is distilled: InstaFlow's last stage
    one_step_from: int | None = introduced(None)

    name: ClassVar[str] = "reflow"
    paper: ClassVar[str] = "2209.03003, 2309.06380"
    needs: ClassVar[tuple[str, ...]] = ("x_0", "target_mean", "condition")
    asks_teacher: ClassVar[bool] = False  # its pairs are stored

    @property
    def default_steps(self) -> int:
        """Default sampling steps of the student: four, or one where one step is distilled."""
        return 4 if self.one_step_from is None else 1

    @property
    def last_stage(self) -> tuple[str, int]:
        """Dotted path of the setting that begins the one-step stage, and the training step at which the stage
        begins.
        """
        return "method.one_step_from", self.one_step_from or 0

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, a stage that begins before the training."""
        super(Reflow, self).check(sampling, lane_size, steps)
        if self.one_step_from is not None and self.one_step_from < 0:
            raise UserError(f"method.one_step_from is {self.one_step_from}; write a step, 0 or later")

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: |v - (e - x_0)|^2 at x_t = (1 - u) x_0 + u e with u uniform up to the sampler's start
        (2209.03003, equation 1); in the last stage |x_0(z) - x_0|^2 at the start itself (2309.06380, equation 6).
        """
        x_0, noise = batch["x_0"], batch["target_mean"]
        last = self.one_step_from is not None and step >= self.one_step_from
        draw = self.times.draw(len(x_0), StraightPath(), given.schedule, rng)
        t, weight = (torch.ones_like(draw.t),) * 2 if last else draw[:2]
        c = StraightPath().coefficients(given.schedule, t)
        student = given.denoiser(networks[STUDENT])
        found = student.on_path(interpolate(c, x_0, noise, noise), c, batch["condition"])
        error = found.data - x_0 if last else found.flow - (noise - x_0)
        return {STUDENT: Loss(weighted(self.premetric.per_sample(error), weight), times=t)}
