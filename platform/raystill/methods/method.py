"""The shape of a training method: settings that say what networks and fields it needs, and a pure function from a batch
to one loss per role.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Generator, Tensor, nn

from raystill.config.errors import UserError
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import Kind
from raystill.flow.schedules import Schedule
from raystill.flow.starts import StartLaw
from raystill.models.pipeline import Pipeline, TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, ray_scheduler

Batch = Mapping[str, Any]  # field name -> Tensor with the batch first; "key" holds the sample names as a list
Networks = Mapping[str, nn.Module]  # role -> the module to call (through its engine, for learners)
DEFAULT_STEPS = 4  # of a student, where its method can
EVERY_RANK = -1  # in place of a rank, for what all ranks draw alike
STUDENT, TEACHER, TARGET = "student", "teacher", "target"  # roles; the target follows the student


def generator(seed: int, rank: int, step: int) -> Generator:
    """The CPU generator of one step on one rank."""
    # torch's CPU generator keeps only the low 32 bits of a seed, so that numbers packed above them would be lost: hash.
    number = hashlib.sha256(f"{seed}/{rank}/{step}".encode()).digest()[:4]
    return Generator().manual_seed(int.from_bytes(number, "big"))


@dataclass(slots=True)
class Loss:
    """A scalar to minimise, and detached scalars to record beside it by metric name."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None  # on the CPU, shape (batch,): named where a number is not finite


@runtime_checkable  # so that tests can check annotations
class Method(Protocol):
    """Losses of one training step; knows no device, engine, cluster or log."""

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that own an optimizer."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that a batch must have."""

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step."""

    def losses(self, networks: Networks, batch: Batch, rng: Generator, step: int) -> dict[str, Loss]:
        """One loss per role whose turn it is, on disjoint graphs; all randomness comes from `rng`, a CPU generator."""


@dataclass(frozen=True, slots=True)
class Given:
    """What a method is told of the teacher that it is bound to."""

    schedule: Schedule
    kind: Kind
    channels: int  # of a latent
    unconditional: Float[Tensor, "1 length features"]  # of the empty caption
    seed: int  # of the training, for what all ranks draw alike
    features: Mapping[str, int]  # names and channels of the parts of its UNet that an adversary may read


@dataclass(slots=True)
class Head:
    """A small network of a method's own, kept whole on every rank, and the constant rate at which it learns."""

    module: nn.Module
    learning_rate: float


class Distillation(ABC):
    """Settings of a method that distils a teacher; an implementation is a frozen dataclass in a file of its own."""

    __slots__ = ()
    name: ClassVar[str]  # in cards and tables
    paper: ClassVar[str]  # arXiv numbers
    revision: ClassVar[int] = 1  # raised whenever its numbers change
    needs: ClassVar[tuple[str, ...]] = ("x_0", "condition")  # fields of the targets
    asks_teacher: ClassVar[bool] = True  # whether training steps call the frozen teacher
    copies: ClassVar[tuple[str, ...]] = ()  # learners that begin as the student does
    tells_landing: ClassVar[bool] = False  # whether its networks are told where a jump lands
    takes_eta: ClassVar[bool] = True  # whether its sampler can draw fresh noise, or always does

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that own an optimizer."""
        return (STUDENT,)

    def calls(self, steps: int) -> float:
        """Evaluations of the frozen teacher's network for each sample, a mean over a training of so many steps; both
        branches of guidance are counted.
        """
        del steps
        return 0.0

    def noisy(self, sampling: Sampling) -> bool:
        """Whether its sampler draws fresh noise."""
        return sampling.eta > 0

    @property
    def guides(self) -> float:
        """Scale w at which its student is guided when it is sampled; 1 is none, since most students hold their
        teacher's.
        """
        return 1.0

    @property
    def default_steps(self) -> int:
        """Steps in which its student is drawn unless somebody asks for others."""
        return DEFAULT_STEPS

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures that are drawn during a training."""
        return (1, 4)

    @property
    def last_stage(self) -> tuple[str, int]:
        """Setting that says when its stages begin, and the step of training at which the last one does."""
        return "", 0

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step: all of them, for most."""
        del step
        return self.learners

    @abstractmethod
    def losses(self, given: Given, networks: Networks, batch: Batch, rng: Generator, step: int) -> dict[str, Loss]:
        """One loss per role whose turn it is, on disjoint graphs; all randomness comes from `rng`, a CPU generator."""

    def bind(self, given: Given) -> Method:
        """The method on a teacher that `check_teacher` takes."""
        return Bound(self, given)

    def heads(self, given: Given) -> dict[str, Head]:
        """Small networks of its own by role."""
        del given  # most have none
        return {}

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher that it cannot be used with."""
        del teacher  # most take any

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps at a step, 1 not to follow the student at all; None
        where the method has no target network, or the student itself is it.
        """
        del step
        return None

    def scheduler(self, pipeline: Pipeline, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The sampler that its student expects: stock DDIM for most."""
        return ray_scheduler(pipeline, DiffusionPath(), sampling, start)

    def check(self, sampling: Sampling, batch_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, settings that do not fit together, `steps` being the sampler's step counts; nothing
        has been started yet.
        """
        del batch_size, steps  # most take any
        if sampling.jump != "ode":
            raise UserError(
                f"sampling.jump is {sampling.jump!r}, and {self.name} holds no target mean: --set sampling.jump=ode"
            )
        if sampling.eta > 0 and not self.takes_eta:
            raise UserError(
                f"sampling.eta is {sampling.eta}, of which {self.name}'s sampler knows nothing: --set sampling.eta=0"
            )


def whole_steps(parts: int) -> int:
    """The default steps of a student that takes a multiple of `parts` jumps."""
    return -(-DEFAULT_STEPS // parts) * parts


def check_jumps(steps: tuple[int, ...], parts: int, setting: str) -> None:
    """Refuse, with UserError, step counts of a sampler of which a jump crosses an edge of the `parts` equal parts of
    time that a student was trained within; `setting` is where their number comes from.
    """
    if crossing := [n for n in steps if n % parts]:
        raise UserError(
            f"evaluation.student_steps has {crossing}, and a student of {setting} ending in {parts} takes {parts} "
            f"jumps or a multiple of it: --set 'evaluation.student_steps=[{parts}, {2 * parts}]'"
        )


def check_times(schedule: Schedule, setting: str, count: int) -> None:
    """Refuse, with UserError, a setting that asks for more times than a teacher was trained at."""
    if count > schedule.steps:
        raise UserError(
            f"{setting} is {count}, and the teacher knows {schedule.steps} times: --set {setting}={schedule.steps}"
        )


@dataclass(frozen=True, slots=True)
class Bound:
    """A method on its teacher."""

    settings: Distillation
    given: Given

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that own an optimizer."""
        return self.settings.learners

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that a batch must have."""
        return self.settings.needs

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step."""
        return self.settings.turn(step)

    def losses(self, networks: Networks, batch: Batch, rng: Generator, step: int) -> dict[str, Loss]:
        """One loss per role whose turn it is."""
        return self.settings.losses(self.given, networks, batch, rng, step)
