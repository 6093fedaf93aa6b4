"""Trajectory overlap, measured: what a student cannot know of x_0 from a point of its path."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from raystill.config.fingerprint import introduced
from raystill.data.records import Row, unpack_row
from raystill.data.shards import Sample
from raystill.flow.paths import times_at
from raystill.flow.randomness import RandomStream
from raystill.methods.method import STUDENT
from raystill.methods.rayflow import RayFlow
from raystill.training.task import Assembly
from raystill_studies.gradients import batch_of


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlapProbe:
    """Settings that say where on its path a student's error of x_0 is measured."""

    shards: int = introduced(2)  # shards of the targets that are used
    instances: int = introduced(64)  # instances of each shard
    # points of a path: the angles of the stock sampler's timesteps in so many steps, the same ones for every path
    points: int = introduced(8)
    seed: int = introduced(6000)  # seed of the path's noise

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: random numbers of 128-bit keys


class OverlapTransform:
    """The transform of stored targets to a student's squared error of x_0 along their paths, beside the variance of
    x_0.

    Two instances whose paths meet at one point and time cannot both be known from it, so that the least error there is
    the variance of x_0 given the point: 0 where no paths meet (2209.03003).
    """

    def __init__(
        self, build: Callable[[torch.device], Assembly], method: RayFlow, probe: OverlapProbe, device: str
    ) -> None:
        self.method, self.probe, self.device = method, probe, torch.device(device)
        built = build(self.device)
        assert built.given is not None
        self.student, self.given = built.modules[STUDENT].eval(), built.given

    def read(self, sample: Sample) -> Row:
        """Read a stored row of the targets."""
        return unpack_row(sample)

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """One row per instance with `error`, shape (points,), noisy end first, and `variance`, the variance of x_0 over
        the instances: means over the numbers of a latent.
        """
        rows = rows[: self.probe.instances]
        batch, schedule = batch_of(rows, self.device), self.given.schedule
        angles = schedule.angle(schedule.sampling_times(self.probe.points)[:-1])
        times = times_at(self.method.path, schedule, angles)
        shape = batch["x_0"].shape[1:]
        errors = []
        for k, t in enumerate(times):
            streams = [RandomStream.of("overlap", self.probe.seed, row["key"], k) for row in rows]
            eps = torch.stack([stream.normal(shape) for stream in streams]).to(self.device)
            prediction = self.method.answers(self.given, self.student, batch, t.expand(len(rows)), eps).prediction
            errors.append((prediction.data.float() - batch["x_0"]).square().mean(dim=(1, 2, 3)))
        found = torch.stack(errors, dim=1).cpu().numpy()
        variance = batch["x_0"].var(dim=0).mean().cpu().numpy()
        return [
            {"key": r["key"], "caption": r["caption"], "error": e, "variance": variance}
            for r, e in zip(rows, found, strict=True)
        ]


def overlap(rows: list[Row]) -> list[float]:
    """Mean error at every angle, noisy end first, over instances, as a share of the variance of x_0."""
    variance = np.mean([row["variance"] for row in rows])
    return [float(value) for value in np.mean([row["error"] for row in rows], axis=0) / variance]
