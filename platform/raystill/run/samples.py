"""Stages that draw pictures for an evaluation and store them with their features: the teacher's once for all runs, a
student's per adapter.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from raystill.config.fingerprint import Knob
from raystill.data.records import Reading, Row, caption_of, picture_of, unpack_row
from raystill.data.shards import Sample
from raystill.data.starts import start_of
from raystill.evaluation.alexnet import load_alexnet
from raystill.evaluation.features import FeatureNetwork, Lpips, extract, feature_network, pairwise
from raystill.flow.paths import RayPath
from raystill.flow.predictions import Latent
from raystill.flow.solvers import ddim
from raystill.models.conditioning import Condition, split
from raystill.models.denoiser import GuidedDenoiser
from raystill.models.hub import teacher_at
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.revision import revision
from raystill.models.sampling import NORMAL, ODE, draw, guided_network, ray_scheduler, solver
from raystill.run.settings import Evaluation

SampleLatents = Callable[[Latent, Condition, int], Latent]  # (start, condition, steps) -> clean latents


@dataclass(slots=True)
class PictureColumns:
    """Draws pictures of a shard's captions at several step counts, and times each count."""

    pipeline: Pipeline
    draw: SampleLatents
    settings: Evaluation
    features: FeatureNetwork

    @torch.inference_mode()
    def columns(self, rows: list[Row], steps: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Pictures, features and seconds per picture, named `image_4`, `features_4`, `seconds_4` and so on."""
        device = self.pipeline.device
        start = torch.stack([start_of(r["key"], self.settings.seed, self.pipeline.latent_shape) for r in rows]).to(
            device
        )
        condition = self.pipeline.condition([r["caption"] for r in rows])
        columns: dict[str, np.ndarray] = {}
        for count in steps:
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
                parts = [
                    self.draw(z, c, count)
                    for z, c in zip(
                        start.split(self.settings.batch_size), split(condition, self.settings.batch_size), strict=True
                    )
                ]
            images = self.pipeline.decode(torch.cat(parts).float()).numpy()
            seconds = (time.perf_counter() - began) / len(rows)
            columns |= {f"image_{count}": images, f"features_{count}": extract(self.features, images).numpy()}
            columns[f"seconds_{count}"] = np.full(len(rows), seconds)
        return columns


def teacher_draw(teacher: str, guidance: float, device: str) -> tuple[Pipeline, SampleLatents]:
    """A teacher's pipeline, and its guided DDIM sampling at the stock timesteps."""
    pipeline = load_pipeline(teacher).to(torch.device(device))
    schedule = pipeline.schedule
    guided = GuidedDenoiser(pipeline.denoiser, pipeline.empty(), guidance)
    return pipeline, lambda z, c, n: ddim(lambda x, t: guided(x, t, c), schedule, z, schedule.sampling_times(n))


@runtime_checkable  # so that tests can check annotations
class Sampler(Protocol):
    """A teacher or student with its sampler: what an evaluation draws with."""

    def draw(self, device: str) -> tuple[Pipeline, SampleLatents]:
        """Load the networks on a device; return the pipeline and a function that samples."""

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on, for their address."""


@dataclass(frozen=True, slots=True)
class Solver:
    """A teacher that is sampled by one of diffusers' solvers: nothing is trained."""

    teacher: Knob[str]
    scheduler: str | None  # class of diffusers, made with the teacher's schedule; None takes a student's scheduler
    guidance: float

    def draw(self, device: str) -> tuple[Pipeline, SampleLatents]:
        """Load the teacher on a device; return its pipeline and a function that samples."""
        pipeline = load_pipeline(self.teacher).to(torch.device(device))
        network = guided_network(pipeline.call, self.guidance, pipeline.empty)
        if self.scheduler is None:
            scheduler = ray_scheduler(pipeline.scheduler, RayPath(), ODE, NORMAL)
        else:
            scheduler = solver(pipeline.scheduler, self.scheduler)
        return pipeline, lambda z, c, n: draw(network, scheduler, z, c, n)

    def identity(self) -> dict[str, Any]:
        """Return everything that the samples depend on: the teacher's revision, the solver and the guidance."""
        return {"teacher": revision(teacher_at(self.teacher)), "solver": self.scheduler, "guidance": self.guidance}


class TeacherSamples:
    """The transform of source samples to the teacher's pictures at every step count, and features of the real ones."""

    def __init__(self, teacher: str, settings: Evaluation, reading: Reading, device: str) -> None:
        self.reading, self.settings = reading, settings
        features = feature_network(settings.features)
        self.drawing = PictureColumns(*teacher_draw(teacher, settings.guidance, device), settings, features)

    def read(self, sample: Sample) -> Row:
        """Read a sample's caption and real picture."""
        return {
            "key": sample.key,
            "caption": caption_of(sample, self.reading),
            "image": picture_of(sample, self.reading),
        }

    def compute(self, rows: list[Row]) -> list[Row]:
        """Draw the teacher's pictures of a shard's captions, and take features of the real pictures too."""
        rows = rows[: self.settings.pictures]
        every = dict.fromkeys((*self.settings.teacher_steps, self.settings.reference_steps))
        columns = self.drawing.columns(rows, tuple(every))
        real = np.stack([row["image"] for row in rows])
        columns["features_real"] = extract(self.drawing.features, real).numpy()
        return _rows(rows, columns)


class StudentSamples:
    """The transform of the teacher's stored samples to a student's from the same captions and starts, with their LPIPS
    to the teacher's pictures at the reference steps.
    """

    def __init__(self, drawn: Sampler, settings: Evaluation, device: str) -> None:
        self.settings = settings
        features = feature_network(settings.features)
        self.drawing = PictureColumns(*drawn.draw(device), settings, features)
        self.lpips = Lpips(alexnet=load_alexnet())

    def read(self, sample: Sample) -> Row:
        """Read the key, caption and reference picture of a stored row of the teacher's samples."""
        row = unpack_row(sample)
        return {name: row[name] for name in ("key", "caption", f"image_{self.settings.reference_steps}")}

    def compute(self, rows: list[Row]) -> list[Row]:
        """Draw the student's pictures of a shard's captions and compare them with the reference pictures."""
        steps = self.settings.student_steps
        columns = self.drawing.columns(rows, steps)
        reference = np.stack([row[f"image_{self.settings.reference_steps}"] for row in rows])
        agreements = pairwise(self.lpips, reference, *(columns[f"image_{count}"] for count in steps)).numpy()
        return _rows(rows, columns | {f"agreement_{n}": found for n, found in zip(steps, agreements, strict=True)})


def _rows(rows: list[Row], columns: dict[str, np.ndarray]) -> list[Row]:
    """Rows with the key and caption of the old ones and the new columns."""
    return [
        {
            "key": row["key"],
            "caption": row["caption"],
            **{name: np.asarray(values[i]) for name, values in columns.items()},
        }
        for i, row in enumerate(rows)
    ]
