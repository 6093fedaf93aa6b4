"""The settings of a whole run: from shards to a registered adapter."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import lcm
from typing import ClassVar

from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.data.ports import check_port
from raystill.data.records import Reading
from raystill.data.targets import Assigned, Encoded, Expectation, Generated, Independent, Inverted
from raystill.engine.learning_rate import check_decay
from raystill.engine.protocol import Optimizer
from raystill.evaluation.features import FEATURES
from raystill.flow.schedules import Times
from raystill.methods.method import check_times
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.counts import wrong_counts
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import NORMAL, Sampling
from raystill.models.weights import Full, Lora
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one process takes of a node, and of which nodes."""

    cpus: float = 1.0  # logical
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)  # custom ones, as in `ray start --resources`
    labels: Mapping[str, str] = field(default_factory=dict)  # of the node, as in `ray start --labels`

    @property
    def amounts(self) -> dict[str, float]:
        """Every resource of which it takes some, by Ray's names."""
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in every.items() if amount > 0}

    def __str__(self) -> str:
        """For people."""
        amounts = [f"{amount:g} {name}" for name, amount in self.amounts.items()]
        return ", ".join([*amounts, *(f"{name}={value}" for name, value in self.labels.items())]) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a run asks of a Ray cluster."""

    workers: Knob[int] = 1  # training workers, one rank each, that share out a step's lanes
    worker: Knob[Share] = field(default_factory=lambda: Share(cpus=0.8))  # readers need a little beside it
    actors: Knob[int] = 2  # of the pool that computes derived shards: the teacher's and the encoders' work
    actor: Knob[Share] = field(default_factory=Share)
    reader_labels: Knob[Mapping[str, str]] = field(default_factory=dict)  # of the nodes that read for the workers
    grows: Knob[bool] = False  # nodes are added on demand: what is missing is waited for, not refused
    zero_stage: Knob[int] = 2  # 0 to 3
    max_failures: Knob[int] = 1  # restarts of the worker group from the last checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """How the frozen teacher's targets are computed."""

    estimator: Generated | Inverted | Expectation | Independent | Assigned | Encoded = introduced_group(Generated)
    shards: int | None = introduced(None)  # of the source, after those that are evaluated; None takes all
    seed: int = introduced(0)  # of the samples' starts
    batch_size: Knob[int] = 64  # samples per call of the teacher
    precision: str = introduced("float32")  # of the teacher's activations: "float32" or "bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is drawn and compared."""

    shards: int = introduced(4)  # of the source: their captions are drawn and their pictures are the real ones
    pictures: int | None = introduced(None)  # of each shard; None takes all
    seed: int = introduced(1000)  # of the starts, none of which was trained on
    teacher_steps: tuple[int, ...] = introduced((1, 2, 4, 8, 25))
    reference_steps: int = introduced(50)  # of the teacher, whose samples students are also compared with
    student_steps: tuple[int, ...] = introduced((1, 2, 4, 8))
    guidance: float = introduced(3.0)  # of the teacher
    features: str = introduced("alexnet")  # the feature network; figures are called after it
    batch_size: Knob[int] = 64
    precision: str = introduced("float32")
    captions: Knob[tuple[str, ...]] = ()  # rows of the picture

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: starts of 128-bit keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Settings of one distillation, all of them; `override` changes any by its dotted path."""

    name: Knob[str]
    # of s3:// addresses: "environment" (AWS_*), or "embedded": a server of our own on loopback
    store: Knob[str] = "environment"
    port: Knob[int | None] = None  # of the embedded store; None takes a free one
    sample: Knob[str | None] = None  # local shards that are copied to `shards` first
    shards: Knob[str]  # source shards: s3://bucket/prefix or a local path
    work: Knob[str]  # where targets, samples and checkpoints go: s3://bucket/prefix or a local path
    teacher: Knob[str]  # directory of a Stable Diffusion pipeline
    model: Knob[str]  # name in the registry
    experiment: Knob[str] = "raystill"  # in MLflow
    artifacts: Knob[str | None] = None  # s3://bucket/mlflow, where MLflow keeps files; None leaves it to MLflow
    reading: Reading = introduced_group(Reading)
    targets: Targets = introduced_group(Targets)
    method: Distilling = introduced_group(RayFlow)
    sampling: Sampling = introduced_group(Sampling)
    weights: Lora | Full = introduced_group(Lora)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    evaluation: Evaluation = introduced_group(Evaluation)
    cluster: Cluster = introduced_group(Cluster)

    @property
    def task(self) -> DistillTask:
        """The student's training."""
        return DistillTask(
            teacher=self.teacher, method=self.method, weights=self.weights, optimizer=self.optimizer,
            training=self.training, picture_captions=self.evaluation.captions[:8],
        )  # fmt: skip

    def check(self) -> None:
        """Refuse, with UserError, settings that do not fit together; nothing has been started yet."""
        if self.store not in ("environment", "embedded"):
            raise UserError(f"store is {self.store!r}; write environment or embedded: --set store=environment")
        if self.port is not None:
            check_port(self.port)
        check_cluster(self.cluster)
        check_training("", self.training, self.optimizer)
        if isinstance(self.weights, Lora):
            at_least(1, "weights.rank", self.weights.rank)
        self.method.check(self.sampling, self.training.lane_size, self.evaluation.student_steps)
        setting, begins = self.method.last_stage
        if begins >= self.training.steps:
            raise UserError(
                f"training.steps is {self.training.steps}, and the last stage of {self.method.name} begins at step "
                f"{begins}: --set training.steps={begins + max(1, begins // 2)}, or a smaller {setting}"
            )
        _check_targets(self.targets)
        _check_fields(self.method, self.targets)
        _check_evaluation(self.evaluation)
        if (default := self.method.default_steps) not in self.evaluation.student_steps:
            raise UserError(
                f"evaluation.student_steps is {self.evaluation.student_steps}; add {default}, in which a student of "
                f"{self.method.name} is drawn by default"
            )


def check_teacher(run: Run, teacher: TeacherFacts) -> None:
    """Refuse, with UserError, a teacher that a run's method cannot be used with, and step counts of its student's
    sampler at which it would be asked beside the times that it is trained at.
    """
    run.method.check_teacher(teacher)
    steps = run.evaluation.student_steps
    check_times(teacher.schedule, "the largest of evaluation.student_steps", max(steps))
    scheduler = run.method.scheduler(teacher.scheduler, run.sampling, NORMAL)
    trained = run.method.trained_times(teacher.schedule)
    if wrong := wrong_counts(scheduler, steps, trained):
        said = "; ".join(f"nearest to {n} are {' and '.join(map(str, right))}" for n, right in wrong.items())
        raise UserError(
            f"evaluation.student_steps has {list(wrong)}, in which {type(scheduler).__name__} would ask a student of "
            f"{run.method.name} beside the times that it is trained at; {said}: {_remedies(run, wrong, trained)}"
        )


def _remedies(run: Run, wrong: Mapping[int, list[int]], trained: Times | None) -> str:
    """What to write: the nearest step counts, unless the method's default is a wrong one, or, for a student that is
    trained on a grid, the next number of intervals that all counts divide.
    """
    steps = run.evaluation.student_steps
    right = sorted({nearest[0] for nearest in wrong.values()} | (set(steps) - set(wrong)))
    ways = [f"--set 'evaluation.student_steps={right}'"] if run.method.default_steps not in wrong else []
    if trained is not None:
        whole = lcm(*steps)
        ways.append(f"--set method.intervals={-(-len(trained) // whole) * whole}")
    return " or ".join(ways)


def at_least(least: int, path: str, value: int) -> None:
    """Refuse, with UserError, a setting below `least`."""
    if value < least:
        raise UserError(f"{path} is {value}; write {least} or more, such as --set {path}={least}")


def check_precision(path: str, precision: str) -> None:
    """Refuse, with UserError, an unknown precision."""
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"{path} is {precision!r}; write float32 or bfloat16: --set {path}=float32")


def check_cluster(cluster: Cluster) -> None:
    """Refuse, with UserError, a cluster that trains nothing or an unknown stage of ZeRO."""
    if cluster.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"cluster.zero_stage is {cluster.zero_stage}; ZeRO has stages 0, 1, 2 and 3")
    at_least(1, "cluster.workers", cluster.workers)
    at_least(1, "cluster.actors", cluster.actors)


def check_training(prefix: str, training: Training, optimizer: Optimizer) -> None:
    """Refuse, with UserError, a training that cannot run; `prefix` stands before the paths of its settings."""
    path = f"{prefix}training"
    at_least(1, f"{path}.steps", training.steps)
    at_least(1, f"{path}.lanes", training.lanes)
    at_least(1, f"{path}.lane_size", training.lane_size)
    at_least(1, f"{path}.log_every", training.log_every)
    at_least(1, f"{path}.checkpoint_every", training.checkpoint_every)
    at_least(0, f"{path}.picture_every", training.picture_every)
    check_precision(f"{path}.precision", training.precision)
    check_decay(f"{prefix}optimizer.decay", optimizer)


def _check_targets(targets: Targets) -> None:
    at_least(1, "targets.batch_size", targets.batch_size)
    if targets.shards is not None:
        at_least(1, "targets.shards", targets.shards)
    check_precision("targets.precision", targets.precision)


def _check_fields(method: Distilling, targets: Targets) -> None:
    missing = [name for name in method.needs if name not in targets.estimator.makes]
    if missing:
        raise UserError(
            f"{type(method).__name__} needs {', '.join(missing)}, which {type(targets.estimator).__name__} does not "
            "make: --set targets.estimator=Generated"
        )


def _check_evaluation(evaluation: Evaluation) -> None:
    at_least(1, "evaluation.shards", evaluation.shards)
    if evaluation.pictures is not None:
        at_least(2, "evaluation.pictures", evaluation.pictures)
    at_least(1, "evaluation.batch_size", evaluation.batch_size)
    at_least(1, "evaluation.reference_steps", evaluation.reference_steps)
    for name, steps in (("teacher_steps", evaluation.teacher_steps), ("student_steps", evaluation.student_steps)):
        if any(count < 1 for count in steps):
            raise UserError(f"evaluation.{name} is {steps}; every number of steps is 1 or more")
    check_precision("evaluation.precision", evaluation.precision)
    if evaluation.features not in FEATURES:
        raise UserError(f"evaluation.features is {evaluation.features!r}; there are: {', '.join(FEATURES)}")
