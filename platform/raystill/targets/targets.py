"""Instance targets (x_0, target mean) computed by the frozen teacher, once per sample and for every later run."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name
from raystill.data.derive import Index
from raystill.data.records import Reading, Row, caption_of, framed_picture_of, unpack_row
from raystill.data.shards import Sample, unpack
from raystill.data.starts import start_of
from raystill.data.store import Store
from raystill.data.tensors import arrays_of
from raystill.flow.schedules import Schedule
from raystill.flow.starts import StartLaw
from raystill.models.conditioning import EMPTY, Condition, concatenated, moved
from raystill.models.pipeline import load_pipeline
from raystill.targets.estimators import Assignment, Encoding, Estimator, IndependentMeans, Teacher
from raystill.targets.solved import Expectation, Generation, Inversion

__all__ = [
    "Assignment", "Encoding", "Expectation", "Generation", "IndependentMeans", "Inversion", "TargetTransform",
    "check_identity", "fit_start", "start_law_of",
]  # fmt: skip

FITTED_SAMPLES = 1024  # targets that a start law is fitted to, at most


class TargetTransform:
    """The transform of source samples to targets, stored beside the text condition that the student attends to."""

    def __init__(
        self,
        teacher: str,
        estimator: Estimator,
        reading: Reading,
        seed: int,
        batch_size: int,
        precision: str,
        device: str = "cpu",
        *,
        half: bool = False,
    ) -> None:
        self.teacher = Teacher.of(load_pipeline(teacher).to(torch.device(device)))
        self.estimator, self.reading, self.seed, self.batch_size = estimator, reading, seed, batch_size
        self.precision, self.device, self.half = precision, torch.device(device), half
        self.cut = 0

    def read(self, sample: Sample) -> Row:
        """The row of one sample: its caption, and its picture where the estimator needs it; RejectedSampleError where
        the sample cannot be used.
        """
        row: Row = {"key": sample.key, "caption": caption_of(sample, self.reading)}
        if self.estimator.reads_picture:
            row["image"], row["frame"] = framed_picture_of(sample, self.reading)
        return row

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """Targets of a shard, in batches; a sample's start depends on its key and the seed alone, however shards are
        cut.
        """
        pipeline = self.teacher.pipeline
        self.cut = pipeline.backbone.cut(pipeline.encoder, [row["caption"] for row in rows])
        parts = (rows[i : i + self.batch_size] for i in range(0, len(rows), self.batch_size))
        return self.estimator.arranged([row for part in parts for row in self._batch(part)])

    def beside(self) -> dict[str, bytes]:
        """The condition of guidance's other branch, so that trainings need no text encoder."""
        return {EMPTY: save({name: tensor.contiguous().cpu() for name, tensor in self.teacher.unconditional.items()})}

    def _frames(self, rows: list[Row]) -> Condition:
        """What the network is told of pictures that were cut out of larger ones; nothing where none was."""
        if not any(row.get("frame") for row in rows):
            return {}
        backbone, side = self.teacher.pipeline.backbone, self.reading.picture_size
        told = [backbone.framed(size, crop, side) for size, crop in (row["frame"] for row in rows)]
        return moved(concatenated(told), self.device)

    def _batch(self, rows: list[Row]) -> list[Row]:
        pipeline = self.teacher.pipeline
        shape, revision = pipeline.latent_shape, self.estimator.revision
        start = torch.stack([start_of(row["key"], self.seed, shape, revision) for row in rows]).to(self.device)
        told, frames = pipeline.condition([row["caption"] for row in rows]), self._frames(rows)
        condition = told | frames
        picture = None
        if self.estimator.reads_picture:
            stacked = torch.from_numpy(np.stack([row["image"] for row in rows])).to(self.device)
            picture = stacked.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            x_0, mean = self.estimator.targets(self.teacher, start, condition, picture)
        kept = torch.float16 if self.half else torch.float32
        made = {"x_0": x_0.to(kept), "target_mean": None if mean is None else mean.to(kept), "condition": condition}
        if self.half:  # not float16, whose range the features of some encoders exceed; sizes are told exactly
            made["condition"] = {k: t.bfloat16() if t.is_floating_point() else t for k, t in told.items()} | frames
        arrays = arrays_of(made)  # HOST SYNC: one per batch
        return [
            {"key": row["key"], "caption": row["caption"], **{name: array[i] for name, array in arrays.items()}}
            for i, row in enumerate(rows)
        ]


def start_law_of(estimator: Estimator, schedule: Schedule, store: Store, index: Index) -> StartLaw:
    """The law of the starts of sampling for students of an estimator's targets, whose own starts are z = s_1 x_0 + n_1
    mu.

    An estimator without a known law has it fitted at every call, to the first `FITTED_SAMPLES` targets of the index at
    most: whole shards are read until there are as many, so that the driver never streams the data set. The index sorts
    shards by name, hence shards should be as alike as shuffled ones are.
    """
    return estimator.start or fit_start(islice(_starts(schedule, store, index), FITTED_SAMPLES))


def fit_start(starts: Iterable[np.ndarray]) -> StartLaw:
    """The normal law per channel of starts of shape (channels, height, width), over samples and pixels; rounded to six
    digits, so that the law does not depend on the order of a sum. UserError where there is nothing to fit.
    """
    found = list(starts)
    if not found:
        raise UserError("there are no targets to fit a start law to; compute them first: raystill targets")
    mean = np.mean([t.mean(axis=(1, 2), dtype=np.float64) for t in found], axis=0)
    square = np.mean([np.square(t - mean[:, None, None]).mean(axis=(1, 2)) for t in found], axis=0)
    return StartLaw(law="channel_normal", mean=_rounded(mean), std=_rounded(np.sqrt(square)))


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _starts(schedule: Schedule, store: Store, index: Index) -> Iterator[np.ndarray]:
    end = torch.ones(1, dtype=torch.float64)
    signal, noise = float(schedule.signal(end)), float(schedule.noise(end))
    for shard in index.shards:
        if shard.count:
            rows = (unpack_row(sample) for sample in unpack(store.read(shard.key), shard.key))
            pairs = ((row["x_0"].astype(np.float32), row["target_mean"].astype(np.float32)) for row in rows)
            yield from (signal * x_0 + noise * mean for x_0, mean in pairs)


def check_identity(index: Index, identity: Mapping[str, Any], uri: str) -> None:
    """Refuse, with UserError, targets that were made from something else than a run's own: another revision of the
    teacher, other settings, other source shards. The targets' address says so already, unless somebody moved them.
    """
    names = sorted({*index.identity, *identity})
    other = [name for name in names if index.identity.get(name) != identity.get(name)]
    if other:
        found = "; ".join(f"{n} is {index.identity.get(n)!r}, this run's {identity.get(n)!r}" for n in other)
        raise UserError(
            f"the targets at {uri} were computed for something else: {found}. Move them away from there, or let this "
            "run compute its own elsewhere: --set work=s3://BUCKET/PREFIX"
        )


__getattr__ = by_former_name(globals())
