"""Instance targets (x_0, target mean) computed by the frozen teacher, once per sample and for every later run."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from raystill.data.records import Reading, Row, caption_of, picture_of
from raystill.data.shards import Sample
from raystill.flow.predictions import Latent
from raystill.flow.solvers import dpm_solver_2m
from raystill.models.denoiser import Denoiser, GuidedDenoiser
from raystill.models.pipeline import Pipeline, load_pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """x_0 is the teacher's guided sample from z, and mu = (z - s_1 x_0) / n_1.

    mu is the one constant noise whose single DDIM step from z lands on x_0: the mean of the teacher's noise predictions
    over kappa along its own trajectory. At inference mu's law is that of z up to the small s_1 x_0, so sampling starts
    from N(0, I).
    """

    steps: int = 12  # of DPM-Solver++(2M)
    guidance: float = 3.0  # w; 1 is none

    reads_picture: ClassVar[bool] = False

    @property
    def calls(self) -> int:
        """Evaluations of the teacher's network per sample."""
        return self.steps * (1 if self.guidance == 1 else 2)

    def targets(
        self, teacher: Pipeline, start: Latent, condition: Tensor, picture: Tensor | None
    ) -> tuple[Latent, Latent]:
        """Sample the teacher from `start` and solve for the target mean."""
        schedule = teacher.schedule
        denoise = GuidedDenoiser(Denoiser(teacher.unet, schedule, teacher.kind), teacher.condition([""]), self.guidance)
        x_0 = dpm_solver_2m(lambda x, t: denoise(x, t, condition), schedule, start, schedule.sampling_times(self.steps))
        one = torch.ones(1, dtype=torch.float64)
        signal, noise = float(schedule.angle(one).cos()), float(schedule.angle(one).sin())
        return x_0, (start - signal * x_0) / noise


@dataclass(frozen=True, slots=True, kw_only=True)
class Independent:
    """The control: x_0 is the real latent and mu a fresh N(0, I) draw that knows nothing of it."""

    reads_picture: ClassVar[bool] = True
    calls: ClassVar[int] = 0

    def targets(
        self, teacher: Pipeline, start: Latent, condition: Tensor, picture: Tensor | None
    ) -> tuple[Latent, Latent]:
        """Encode the picture; the start is the target mean."""
        assert picture is not None
        return teacher.encode(picture), start


class TargetTransform:
    """Source samples to targets, with the condition that the student attends to stored beside them."""

    def __init__(
        self,
        teacher: Path,
        estimator: Generated | Independent,
        reading: Reading,
        seed: int,
        batch_size: int,
        precision: str,
        device: str = "cpu",
    ) -> None:
        self.teacher = load_pipeline(teacher).to(torch.device(device))
        self.estimator, self.reading, self.seed, self.batch_size = estimator, reading, seed, batch_size
        self.precision, self.device = precision, torch.device(device)

    def read(self, sample: Sample) -> Row:
        """Caption, and the picture where the estimator needs it; RejectedSampleError where it cannot be used."""
        row: Row = {"key": sample.key, "caption": caption_of(sample, self.reading)}
        if self.estimator.reads_picture:
            row["image"] = picture_of(sample, self.reading)
        return row

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """Targets of a shard, in batches; a sample's start depends on its key and the seed alone, however shards are
        cut.
        """
        return [row for i in range(0, len(rows), self.batch_size) for row in self._batch(rows[i : i + self.batch_size])]

    def _batch(self, rows: list[Row]) -> list[Row]:
        start = torch.stack([start_of(row["key"], self.seed, self.teacher.latent_shape) for row in rows]).to(
            self.device
        )
        condition = self.teacher.condition([row["caption"] for row in rows])
        picture = None
        if self.estimator.reads_picture:
            stacked = torch.from_numpy(np.stack([row["image"] for row in rows])).to(self.device)
            picture = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            x_0, mean = self.estimator.targets(self.teacher, start, condition, picture)
        arrays = [t.float().cpu().numpy() for t in (x_0, mean, condition)]
        return [
            {"key": row["key"], "caption": row["caption"], "x_0": a, "target_mean": b, "condition": c}
            for row, a, b, c in zip(rows, *arrays, strict=True)
        ]


def start_of(key: str, seed: int, shape: tuple[int, int, int]) -> Tensor:
    """The N(0, I) start of one sample, a function of its key and the seed."""
    number = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") % 2**63
    return torch.randn(shape, generator=torch.Generator().manual_seed(number))
