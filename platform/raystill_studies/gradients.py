"""How well a law of times serves the student that was trained with it: the gradient's second moment under it, and what
it costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.fingerprint import introduced
from raystill.data.batches import collate
from raystill.data.records import Row, unpack_row
from raystill.data.shards import Sample
from raystill.data.tensors import to_device
from raystill.engine.replicated import ReplicatedEngine
from raystill.evaluation.timing import seconds
from raystill.flow.efficiency import midpoints, oracle, relative_second_moment
from raystill.flow.importance import BatchLaw, LearnedTimes
from raystill.flow.predictions import Latent
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Times
from raystill.methods.method import STUDENT, TIME_SAMPLER, Batch, generator
from raystill.methods.rayflow import as_rayflow
from raystill.training.distillation import DistillTask, constant
from raystill.training.task import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientProbe:
    """Settings that say where gradients are measured."""

    shards: int = introduced(2)  # shards of the targets that are used
    instances: int = introduced(16)  # instances of each shard
    # points of time, in the middles of equal shares of the objective's law; a multiple of ten, since the default law of
    # times has shares of tenths
    points: int = introduced(40)
    seed: int = introduced(7000)  # seed of the path's noise
    timed: int = introduced(3)  # steps of the student that are timed, and ten times as many of the law of times

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: random numbers of 128-bit keys


class GradientTransform:
    """The transform of stored targets to ||grad||^2 of a student's loss along their paths, and its law's density."""

    def __init__(
        self, build: Callable[[torch.device], Assembly], task: DistillTask, probe: GradientProbe, device: str
    ) -> None:
        self.task, self.probe, self.device = task, probe, torch.device(device)
        built = build(self.device)
        assert built.given is not None
        method = as_rayflow(task.method)
        assert method is not None
        self.method, self.given = method, built.given
        self.student, self.law = built.modules[STUDENT], built.modules.get(TIME_SAMPLER)

    def read(self, sample: Sample) -> Row:
        """Read a stored row of the targets."""
        return unpack_row(sample)

    def compute(self, rows: list[Row]) -> list[Row]:
        """`square` and `density`, shape (points,) each, of the first instances, and the seconds of a student's step and
        of the law's part in one.
        """
        chosen = rows[: self.probe.instances]
        times, v = self.method.times, midpoints(self.probe.points)
        t = times.objective.quantile(v, self.method.path, self.given.schedule)
        measured = [(self._squares(row, t), self._density(row, v)) for row in chosen]
        student, law = self._seconds(rows)
        return [
            {
                "key": row["key"], "caption": row["caption"], "square": square.numpy(), "density": density.numpy(),
                "student_s": np.asarray(student), "law_s": np.asarray(law),
            }
            for row, (square, density) in zip(chosen, measured, strict=True)
        ]  # fmt: skip

    def _squares(self, row: Row, t: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """||grad||^2 of one sample's loss at each time, with one noise each."""
        batch, parameters = batch_of([row], self.device), [p for p in self.student.parameters() if p.requires_grad]
        squares = []
        for k in range(len(t)):
            stream = RandomStream.of("gradient", self.probe.seed, row["key"], k)
            eps = stream.normal(batch["x_0"].shape).to(self.device)
            loss = self._losses(batch, t[k : k + 1], eps).sum()
            squares.append(sum(g.double().square().sum() for g in torch.autograd.grad(loss, parameters)))
        return torch.stack([torch.as_tensor(s) for s in squares]).cpu()

    def _losses(self, batch: Batch, t: Times, eps: Latent) -> Float[Tensor, " batch"]:
        """The loss of each sample at its time."""
        return self.method.objective.per_sample(*self.method.answers(self.given, self.student, batch, t, eps))

    @torch.no_grad()
    def _density(self, row: Row, v: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """The density q / p of the law of times at quantiles v, for one instance."""
        times = self.method.times
        if not isinstance(times, LearnedTimes):
            return times.relative_density(v)
        assert self.law is not None
        batch = batch_of([row], self.device)
        outputs = self.law(times.features(batch["x_0"], batch["target_mean"]))
        return times.density(outputs, v[None].to(self.device))[0].cpu()

    def _seconds(self, rows: list[Row]) -> tuple[float, float]:
        """Seconds of the student's forward and backward in a step, and of all that the law does there on one rank."""
        size = self.task.training.lane_size
        batch = batch_of([rows[i % len(rows)] for i in range(size)], self.device)
        t, eps = torch.linspace(0.1, 0.9, size, dtype=torch.float64), torch.randn_like(batch["x_0"])

        def student_step() -> None:
            self._losses(batch, t, eps).mean().backward()

        student = seconds(student_step, self.probe.timed)
        return student, seconds(self._law_step(batch), 10 * self.probe.timed)

    def _law_step(self, batch: Batch) -> Callable[[], object]:
        """A function that draws a batch of times and, where they are learned, learns from its squared gradients."""
        times, law, path, schedule = self.method.times, self.law, self.method.path, self.given.schedule
        rng, squares = generator(0, 0, 0), torch.rand(len(batch["x_0"]), device=self.device) + 0.1
        if not isinstance(times, LearnedTimes):
            return partial(times.draw, len(squares), path, schedule, rng)
        assert law is not None
        engine = ReplicatedEngine(law, constant(times.learning_rate), self.device)

        def step() -> None:
            sampler = BatchLaw(times, law(times.features(batch["x_0"], batch["target_mean"])), times.warmup_steps)
            draw = sampler.draw(len(squares), path, schedule, rng)
            engine.backward(torch.stack(list(sampler.losses(draw, squares).values())).sum())
            engine.step(0.0)

        return step


def batch_of(rows: list[Row], device: torch.device) -> Batch:
    """Rows of stored targets as a batch of a training."""
    batch: Batch = to_device(collate(rows), device)
    return batch


def efficiency(rows: list[Row]) -> dict[str, Any]:
    """Second moment of the weighted gradient under the law over that under its objective's own; the same of the best
    law of time alone; both laws' densities, means over instances; and the seconds of a student's step and of the law's
    part in it. Densities have mean 1 over the points, which a law in bins of another width has only nearly.
    """
    square, density = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("square", "density"))
    density = density / density.mean(dim=1, keepdim=True)
    best = oracle(square.mean(dim=0))
    return {
        "ratio": relative_second_moment(square, density),
        "oracle": best.ratio,
        "density": [round(value, 4) for value in density.mean(dim=0).tolist()],
        "best_density": [round(value, 4) for value in best.density.tolist()],
        "student_s": float(np.mean([row["student_s"] for row in rows])),
        "law_s": float(np.mean([row["law_s"] for row in rows])),
    }
