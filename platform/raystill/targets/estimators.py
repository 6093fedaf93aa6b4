"""Target-mean estimators: how the frozen teacher makes an instance's clean latent x_0 and target mean mu.

No estimator depends on RayFlow's sigma, on a time sampler or on a student, so that all runs and trials share its
targets.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name, introduced
from raystill.data.records import Row
from raystill.flow.predictions import Kind, Latent
from raystill.flow.schedules import Schedule
from raystill.flow.solvers import VPDenoise
from raystill.flow.starts import StartLaw
from raystill.models.backbones.backbone import Pictures
from raystill.models.conditioning import Condition
from raystill.models.denoiser import Denoiser, GuidedDenoiser
from raystill.models.pipeline import Pipeline


@dataclass(frozen=True, slots=True)
class Teacher:
    """The frozen teacher as estimators use it: its pipeline, its denoiser and the condition of the empty caption."""

    pipeline: Pipeline
    denoiser: Denoiser
    unconditional: Condition  # of guidance's other branch, one row

    @classmethod
    def of(cls, pipeline: Pipeline) -> "Teacher":
        """The teacher of a pipeline, with what all batches share computed once."""
        return cls(pipeline, pipeline.denoiser, pipeline.empty())

    def guided(self, condition: Condition, scale: float) -> VPDenoise:
        """The teacher's guided denoiser under a condition; both branches are one batched forward."""
        guided = GuidedDenoiser(self.denoiser, self.unconditional, scale)
        return lambda x, t: guided(x, t, condition)

    def encode(self, picture: Pictures | None) -> Latent:
        """Latents of real pictures, for estimators that read pictures."""
        assert picture is not None
        return self.pipeline.encode(picture)


class Estimator(ABC):
    """An estimator of (x_0, mu) for instances; an implementation's fields are its settings."""

    revision: int = 1  # raised whenever results change; a setting where starts are used: 1 gives the former ones
    reads_picture: ClassVar[bool]  # whether `targets` needs the sample's picture
    makes: ClassVar[tuple[str, ...]] = ("x_0", "target_mean", "condition")  # fields of targets that methods may need
    start: ClassVar[StartLaw | None] = StartLaw()  # law of z at inference; None: fitted by `start_law_of`

    @property
    def calls(self) -> int:
        """Evaluations of the teacher's network per sample, both branches of guidance counted."""
        return 0

    @abstractmethod
    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent | None]:
        """The pair (x_0, mu) of a batch, with None for mu where none is made; `start` is N(0, I), `picture` is given
        where `reads_picture`.
        """

    def check(self, schedule: Schedule, kind: Kind) -> None:
        """Refuse, with UserError, a teacher of a schedule and kind that these settings cannot be used with."""
        del schedule, kind  # most estimators take any

    def arranged(self, rows: list[Row]) -> list[Row]:
        """The rows of a whole shard in the given order, after all their targets are known; an estimator may exchange
        target means among them.
        """
        return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding(Estimator):
    """x_0 is the real latent, and there is no mu: for methods that noise data themselves."""

    former: ClassVar[str] = "Encoded"

    reads_picture: ClassVar[bool] = True
    makes: ClassVar[tuple[str, ...]] = ("x_0", "condition")

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, None]:
        """Encode the picture to x_0; there is no mu."""
        return teacher.encode(picture), None


@dataclass(frozen=True, slots=True, kw_only=True)
class IndependentMeans(Estimator):
    """The control: x_0 is the real latent and mu a N(0, I) draw that knows nothing of it.

    Targets are stored, so a sample keeps its one draw; new ones every time a sample is seen would need no store.
    """

    former: ClassVar[str] = "Independent"

    revision: int = introduced(1, now=2)  # of the random starts; 1 is torch's generator, of 32-bit seeds

    reads_picture: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_revision(self)

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent]:
        """Encode the picture; the start is the target mean."""
        return teacher.encode(picture), start


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment(Estimator):
    """x_0 is the real latent, and mu the N(0, I) draw that a linear assignment gives it: over a group of samples, the
    sum of squared distances |x_0 - mu|^2 is least (Immiscible Diffusion 2406.12303).

    The paper assigns fresh noise within every training batch; here a sample keeps its one mu. A group is part of one
    shard: its samples in the order of their keys, cut evenly into groups of at most `group`. So targets depend on which
    samples share a shard, but not on their order in it, on the teacher's batch size or on the number of workers.
    """

    former: ClassVar[str] = "Assigned"

    group: int = introduced(256)  # samples of one assignment, whose computing time grows with their cube
    revision: int = introduced(1, now=2)  # of the random starts; 1 is torch's generator, of 32-bit seeds

    reads_picture: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_revision(self)
        if self.group < 2:
            raise UserError(
                f"Assignment has groups of {self.group}; write 2 or more: --set targets.estimator.group=256"
            )

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent]:
        """Encode the picture; the start is a target mean that `arranged` assigns anew."""
        return teacher.encode(picture), start

    def arranged(self, rows: list[Row]) -> list[Row]:
        """The rows of a shard, with target means assigned anew to latents within each group."""
        dealt = list(rows)
        by_key = sorted(range(len(rows)), key=lambda i: str(rows[i]["key"]))
        for group in np.array_split(np.array(by_key), -(-len(rows) // self.group)):
            means = [rows[i]["target_mean"] for i in group]
            chosen = assignment(np.stack([rows[i]["x_0"] for i in group]), np.stack(means))
            for i, j in zip(group, chosen, strict=True):
                dealt[i] = {**rows[i], "target_mean": means[j]}
        return dealt


def check_revision(estimator: Estimator) -> None:
    """Refuse, with UserError, a revision of the random starts that does not exist."""
    if estimator.revision not in (1, 2):
        raise UserError(
            f"{type(estimator).__name__} has revision {estimator.revision}; write 2, or 1 for the starts of torch's "
            "generator, with which older targets were made: --set targets.estimator.revision=2"
        )


def assignment(data: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """For each latent the index of its noise, so that the sum of squared distances is least; shapes (group, ...).

    Norms are the same in every assignment: the sum of inner products is made greatest.
    """
    x, z = (a.reshape(len(a), -1).astype(np.float64) for a in (data, noise))
    chosen: np.ndarray = linear_sum_assignment(x @ z.T, maximize=True)[1]
    return chosen


__getattr__ = by_former_name(globals())
