"""RayFlow (2503.07699): every sample is trained along its own path between its clean latent and its own target mean.

Departures from the paper, whose code is not public: targets are stored pairs made by the frozen teacher beforehand
(`data.targets`), and the student is asked by signal-to-noise matching (`Denoiser.on_path`), so that its first step
equals the teacher whatever the path.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator

from raystill.flow.paths import PairedDiffusionPath, RayPath, interpolate
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import Schedule
from raystill.flow.times import SamplingTimes, UniformTimes
from raystill.methods.method import Batch, Loss, Networks
from raystill.models.denoiser import Denoiser


@dataclass(frozen=True, slots=True, kw_only=True)
class RayFlow:
    """Settings of the method."""

    path: RayPath | PairedDiffusionPath = field(default_factory=RayPath)
    times: SamplingTimes | UniformTimes = field(default_factory=SamplingTimes)
    loss: Literal["data", "velocity"] = (
        "velocity"  # squared error of x_0, or of v in the student's coordinates (x_0's over n^2)
    )

    def bind(self, schedule: Schedule, kind: Kind) -> "BoundRayFlow":
        """The method on a teacher's schedule and prediction kind."""
        return BoundRayFlow(self, schedule, kind)


@dataclass(frozen=True, slots=True)
class BoundRayFlow:
    """RayFlow's losses for one teacher."""

    settings: RayFlow
    schedule: Schedule
    kind: Kind
    learners: tuple[str, ...] = ("student",)
    needs: tuple[str, ...] = ("x_0", "target_mean", "condition")

    def turn(self, step: int) -> tuple[str, ...]:
        """The student, at every step."""
        return self.learners

    def losses(self, networks: Networks, batch: Batch, rng: Generator, step: int) -> dict[str, Loss]:
        """Weighted squared error of the student's x_0 at points of the samples' own paths, mean over the batch."""
        x_0, target_mean = batch["x_0"], batch["target_mean"]
        t, weight = self.settings.times.draw(len(x_0), self.settings.path, self.schedule, rng)
        eps = torch.randn(x_0.shape, generator=rng).to(x_0.device, non_blocking=True)
        c = self.settings.path.coefficients(self.schedule, t)
        student = Denoiser(networks["student"], self.schedule, self.kind)
        prediction = student.on_path(interpolate(c, x_0, target_mean, eps), c, batch["condition"])
        error = (prediction.data.float() - x_0).square()
        mse = error.detach().mean()
        if self.settings.loss == "velocity":
            weight = weight / c.angle.sin().square()
        value = (column(weight, x_0) * error).mean()
        return {"student": Loss(value, {"loss/student_data_mse": mse}, times=t)}
