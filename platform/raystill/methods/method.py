"""The interface of a training method: settings that say what networks and fields it needs, and a pure function from a
batch to one loss per role.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.flow.importance import LearnedTimes
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import Kind
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.flow.starts import StartLaw
from raystill.models.backbones.backbone import Backbone
from raystill.models.conditioning import Condition
from raystill.models.denoiser import Denoiser
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, ray_scheduler
from raystill.models.stock import StockSampler

Batch = Mapping[str, Any]  # field name -> Tensor with the batch first; "key" holds the sample names as a list
Networks = Mapping[str, nn.Module]  # role -> the module to call (through its engine, for learners)
DEFAULT_STEPS = 4  # sampling steps of a student, where its method allows as many
EVERY_LANE = -1  # in place of a lane's number, for random draws that all lanes share
STUDENT, TEACHER, TARGET = "student", "teacher", "target"  # names of roles; the target network follows the student
TIME_SAMPLER = "time_sampler"  # role of a learned law of times


def generator(seed: int, lane: int, step: int, lanes: int = 1) -> RandomStream:
    """The random stream of one lane of a step; stratified numbers are stratified over all lanes of the step
    together.
    """
    stream = RandomStream.of("step", seed, lane, step)
    if lanes == 1:
        return stream
    places = RandomStream.of("bins of lanes", seed, step).permutation(lanes)
    return stream.share_bins(int(places[lane]), lanes)


@dataclass(slots=True)
class Loss:
    """A scalar to minimise, and detached scalars to record beside it by metric name."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None  # the samples' times, on the CPU, shape (batch,): named where a number is not finite


@runtime_checkable  # so that tests can check annotations
class Method(Protocol):
    """A method as the training loop sees it: the losses of one training step, without device, engine, cluster or
    log.
    """

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that are trained, each with an optimizer of its own."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that a batch must have."""

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step."""

    def losses(self, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """One loss for each role that is updated at this step, on disjoint graphs; all randomness comes from `rng`."""


@dataclass(frozen=True, slots=True)
class Composition:
    """A method put together from its parts: settings bound to a teacher, or another method with one part changed."""

    learners: tuple[str, ...]
    needs: tuple[str, ...]
    turn: Callable[[int], tuple[str, ...]]
    losses: Callable[[Networks, Batch, RandomStream, int], dict[str, Loss]]


@dataclass(frozen=True, slots=True)
class Given:
    """Facts about the teacher, and the training's seed, that a method is bound to."""

    schedule: Schedule
    kind: Kind
    backbone: Backbone  # how its network, and copies of it, are asked
    unconditional: Condition  # of guidance's other branch, one row
    seed: int  # seed of the training, for random draws that all lanes share

    def denoiser(self, network: Any) -> Denoiser:
        """A network of the teacher's family on the teacher's schedule; an engine's wrapper of one, for learners."""
        return Denoiser(self.backbone.bound(network), self.schedule, self.kind)


@dataclass(slots=True)
class Head:
    """A small network of a method's own (an adversary, a law of times), kept whole on every rank, and its constant
    learning rate.
    """

    module: nn.Module
    learning_rate: float


class Distillation(ABC):
    """Settings of a method that distils a teacher; an implementation is a frozen dataclass in a file of its own."""

    __slots__ = ()
    name: ClassVar[str]  # name in adapters' cards and tables
    paper: ClassVar[str]  # arXiv numbers of the method's papers
    # Raised whenever the method's results change; 2: random numbers of 128-bit keys, adversaries' losses per place.
    revision: ClassVar[int] = 2
    needs: ClassVar[tuple[str, ...]] = ("x_0", "condition")  # fields of the targets that losses read
    asks_teacher: ClassVar[bool] = True  # whether training steps call the frozen teacher
    copies: ClassVar[tuple[str, ...]] = ()  # roles that are trained from the same weights as the student
    tells_landing: ClassVar[bool] = False  # whether networks are given the time at which a jump ends
    takes_eta: ClassVar[bool] = True  # whether the method's sampler has a use for `sampling.eta`

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that are trained, each with an optimizer of its own."""
        return (STUDENT,)

    def calls(self, steps: int) -> float:
        """Evaluations of the frozen teacher's network per sample and step, averaged over a training of `steps` steps;
        both branches of guidance are counted.
        """
        del steps
        return 0.0

    def noisy(self, sampling: Sampling) -> bool:
        """Whether the method's sampler draws fresh noise."""
        return sampling.eta > 0

    @property
    def learned_times(self) -> LearnedTimes | None:
        """The law of times that is trained beside the student, as role TIME_SAMPLER; None where there is none."""
        return None

    @property
    def guides(self) -> float:
        """Guidance scale w at which the student is sampled; 1 is none, since most students have learned the teacher's
        guidance.
        """
        return 1.0

    @property
    def default_steps(self) -> int:
        """Sampling steps of the student unless others are asked for."""
        return DEFAULT_STEPS

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures that are drawn during a training."""
        return (1, 4)

    @property
    def last_stage(self) -> tuple[str, int]:
        """Dotted path of the setting that says when stages begin, and the training step at which the last one begins;
        empty and 0 for a single stage.
        """
        return "", 0

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step: all of them, for most methods."""
        del step
        return self.learners

    @abstractmethod
    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """One loss for each role that is updated at this step, on disjoint graphs; all randomness comes from `rng`."""

    def bind(self, given: Given) -> Method:
        """The method bound to a teacher that `check_teacher` takes."""
        return Composition(self.learners, self.needs, self.turn, partial(self.losses, given))

    def heads(self, given: Given) -> dict[str, Head]:
        """The method's own small networks, by role."""
        del given  # most methods have none
        return {}

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher that the method cannot be used with."""
        del teacher  # most methods take any

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps at a step, 1 not to follow the student at all; None
        where the method has no target network, or the student itself is the target.
        """
        del step
        return None

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The sampler of the method's student, as a diffusers scheduler: DDIM for most methods."""
        return ray_scheduler(stock, DiffusionPath(), sampling, start)

    def trained_times(self, schedule: Schedule) -> Times | None:
        """The only times at which the student may be asked; None for any."""
        del schedule  # most students are trained at any, or are also measured at others
        return None

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, settings that do not fit together, `steps` being the sampler's step counts; nothing
        has been started yet.
        """
        del lane_size, steps  # most methods take any
        if sampling.jump != "ode":
            raise UserError(
                f"sampling.jump is {sampling.jump!r}, and {self.name} holds no target mean: --set sampling.jump=ode"
            )
        if sampling.eta > 0 and not self.takes_eta:
            raise UserError(
                f"sampling.eta is {sampling.eta}, of which {self.name}'s sampler knows nothing: --set sampling.eta=0"
            )


def whole_steps(parts: int) -> int:
    """Default sampling steps of a student that takes a multiple of `parts` jumps: the least multiple that reaches
    `DEFAULT_STEPS`.
    """
    return -(-DEFAULT_STEPS // parts) * parts


def check_jumps(steps: tuple[int, ...], parts: int, setting: str) -> None:
    """Refuse, with UserError, step counts of a sampler of which a jump crosses an edge of the `parts` equal parts of
    time that a student was trained within; `setting` is the dotted path of the setting that gives `parts`.
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
