"""The settings of a whole run, from shards to a registered adapter, and of a pretraining, from shards to a pipeline."""

from dataclasses import dataclass
from math import inf, lcm
from typing import ClassVar, get_args, get_type_hints

from raystill.config.checks import at_least, within
from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.data.ports import check_port
from raystill.data.records import Reading
from raystill.engine.learning_rate import check_decay
from raystill.engine.protocol import Optimizer
from raystill.evaluation.features import FEATURES
from raystill.launch.settings import Cluster, check_cluster
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.sampling import Sampling
from raystill.models.weights import Full, Lora
from raystill.targets.targets import Assignment, Encoding, Expectation, Generation, IndependentMeans, Inversion
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.pretraining import AutoencoderTask, DenoiserTask

STOCK_MULTIPLE = 8  # of which the height and width of pictures are multiples in diffusers' pipelines


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Settings of the targets that the frozen teacher computes."""

    estimator: Generation | Inversion | Expectation | IndependentMeans | Assignment | Encoding = introduced_group(
        Generation
    )
    shards: int | None = introduced(None)  # source shards that are used, after those that are evaluated; None takes all
    seed: int = introduced(0)  # seed of the samples' starts
    batch_size: Knob[int] = 64  # samples per call of the teacher
    precision: str = introduced("float32")  # precision of the teacher's activations: "float32" or "bfloat16"
    # whether targets are stored in half the bytes: latents in float16, conditions in bfloat16
    half: bool = introduced(False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Settings of an evaluation: what is drawn and compared."""

    # first shards of the source: their captions are drawn and their pictures are the real ones
    shards: int = introduced(4)
    pictures: int | None = introduced(None)  # pictures of each shard; None takes all
    seed: int = introduced(1000)  # seed of the starts, none of which was trained on
    teacher_steps: tuple[int, ...] = introduced((1, 2, 4, 8, 25))  # step counts at which the teacher is evaluated
    reference_steps: int = introduced(50)  # steps of the teacher's samples with which students are also compared
    student_steps: tuple[int, ...] = introduced((1, 2, 4, 8))  # step counts at which the student is evaluated
    guidance: float = introduced(3.0)  # guidance scale of the teacher; 1 is none
    features: str = introduced("alexnet")  # the feature network; figures are called after it
    batch_size: Knob[int] = 64  # pictures that are drawn at a time
    precision: str = introduced("float32")  # precision of activations: "float32" or "bfloat16"
    captions: Knob[tuple[str, ...]] = ()  # captions of the rows of the grid of pictures

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: starts of 128-bit keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All settings of one distillation; `override` changes any by its dotted path."""

    name: Knob[str]
    # where s3:// addresses lead: "environment" (AWS_*), or "embedded": a server of the run's own on loopback
    store: Knob[str] = "environment"
    port: Knob[int | None] = None  # port of the embedded store; None takes a free one
    sample: Knob[str | None] = None  # local shards that are copied to `shards` first
    shards: Knob[str]  # source shards: s3://bucket/prefix or a local path
    work: Knob[str]  # where targets, samples and checkpoints go: s3://bucket/prefix or a local path
    teacher: Knob[str]  # directory of a pipeline in diffusers' format, or OWNER/NAME[@REVISION] on the Hub
    model: Knob[str]  # name of the adapter in the registry
    experiment: Knob[str] = "raystill"  # experiment in MLflow
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
        """The task that trains the student."""
        return DistillTask(
            teacher=self.teacher, method=self.method, weights=self.weights, optimizer=self.optimizer,
            training=self.training, picture_captions=self.evaluation.captions[:8],
            separate=self.cluster.zero_stage == 3,
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
            within(1e-12, inf, "weights.alpha", self.weights.alpha, self.weights.rank)
            check_precision("weights.base", self.weights.base)
            if self.weights.base == "bfloat16" and self.training.precision != "bfloat16":
                raise UserError(
                    "weights.base is bfloat16, and activations are float32, which do not go through such weights: "
                    "--set training.precision=bfloat16 or --set weights.base=float32"
                )
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pretraining:
    """Settings of the training of a pipeline from scratch."""

    name: Knob[str]
    shards: Knob[str]  # where the source shards are: s3://bucket/prefix or a local path
    work: Knob[str]  # where derived shards and checkpoints go
    output: Knob[str]  # local directory of the finished pipeline
    reading: Reading = introduced_group(Reading)
    autoencoder: AutoencoderTask
    denoiser: DenoiserTask  # its tokens and latent sizes are filled in by the stages before it
    captions: Knob[tuple[str, ...]] = ()  # what the denoiser draws during its training; () takes the data's first ones
    # MLflow experiment; not that of distillations, whose files may lie on an embedded store
    experiment: Knob[str] = "pretraining"
    cluster: Cluster = introduced_group(Cluster)

    def check(self) -> None:
        """Refuse, with UserError, settings that do not fit together."""
        check_cluster(self.cluster)
        check_training("autoencoder.", self.autoencoder.training, self.autoencoder.optimizer)
        check_training("denoiser.", self.denoiser.training, self.denoiser.optimizer)
        factor, size = self.autoencoder.shape.factor, self.reading.picture_size
        if size % (whole := lcm(factor, STOCK_MULTIPLE)):
            raise UserError(
                f"reading.picture_size is {size}; the autoencoder divides pictures by {factor}, and stock pipelines "
                f"take multiples of {STOCK_MULTIPLE}, so it must be a multiple of {whole}, such as --set "
                f"reading.picture_size={(size // whole + 1) * whole}"
            )
        if self.reading.channels != self.autoencoder.shape.channels:
            raise UserError(
                f"reading.channels is {self.reading.channels} and autoencoder.shape.channels is "
                f"{self.autoencoder.shape.channels}; set both to 1 or to 3"
            )


def check_precision(path: str, precision: str) -> None:
    """Refuse, with UserError, an unknown precision."""
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"{path} is {precision!r}; write float32 or bfloat16: --set {path}=float32")


def check_training(prefix: str, training: Training, optimizer: Optimizer) -> None:
    """Refuse, with UserError, a training that cannot run; `prefix` stands before the paths of its settings."""
    path = f"{prefix}training"
    at_least(1, f"{path}.steps", training.steps)
    at_least(1, f"{path}.lanes", training.lanes)
    at_least(1, f"{path}.lane_size", training.lane_size)
    at_least(1, f"{path}.log_every", training.log_every)
    at_least(1, f"{path}.checkpoint_every", training.checkpoint_every)
    at_least(0, f"{path}.picture_every", training.picture_every)
    at_least(0, f"{path}.seed", training.seed)
    within(0, 1, f"{path}.average_decay", training.average_decay, 0.999)
    check_precision(f"{path}.precision", training.precision)
    check_decay(f"{prefix}optimizer.decay", optimizer)
    _check_optimizer(f"{prefix}optimizer", optimizer)


def _check_optimizer(path: str, optimizer: Optimizer) -> None:
    within(0, inf, f"{path}.learning_rate", optimizer.learning_rate, 1e-4)
    at_least(0, f"{path}.warmup_steps", optimizer.warmup_steps)
    within(0, 1, f"{path}.final_fraction", optimizer.final_fraction, 0.05)
    within(0, 0.999999, f"{path}.beta_1", optimizer.beta_1, 0.9)
    within(0, 0.999999, f"{path}.beta_2", optimizer.beta_2, 0.99)
    within(0, inf, f"{path}.weight_decay", optimizer.weight_decay, 0.01)
    within(1e-12, inf, f"{path}.clip_norm", optimizer.clip_norm, 1.0)


def _check_targets(targets: Targets) -> None:
    at_least(1, "targets.batch_size", targets.batch_size)
    if targets.shards is not None:
        at_least(1, "targets.shards", targets.shards)
    check_precision("targets.precision", targets.precision)


def _check_fields(method: Distilling, targets: Targets) -> None:
    missing = [name for name in method.needs if name not in targets.estimator.makes]
    if missing:
        able = [kind for kind in get_args(get_type_hints(Targets)["estimator"]) if set(method.needs) <= set(kind.makes)]
        ways = " or ".join(f"--set targets.estimator={kind.__name__}" for kind in able) or "no estimator does"
        raise UserError(
            f"{type(method).__name__} needs {', '.join(missing)}, which {type(targets.estimator).__name__} does not "
            f"make: {ways}"
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
    within(0, inf, "evaluation.guidance", evaluation.guidance, 3.0)
    check_precision("evaluation.precision", evaluation.precision)
    if evaluation.features not in FEATURES:
        raise UserError(f"evaluation.features is {evaluation.features!r}; there are: {', '.join(FEATURES)}")
