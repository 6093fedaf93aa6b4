"""The main job: targets, training, evaluation, export and registration of one distilled adapter."""

import logging
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.data.derive import Index, Source, Stage
from raystill.data.store import Store, open_store
from raystill.launch.launcher import Launcher
from raystill.launch.stopping import MakeRecorder
from raystill.models import artifact
from raystill.models.hub import teacher_at
from raystill.models.revision import former_revisions, revision
from raystill.models.sampling import NORMAL
from raystill.models.stock import read_scheduler, schedule_of
from raystill.run.adoption import adopted
from raystill.run.checkpoints import checkpoints_at, left_out, train_at
from raystill.run.evaluate import EvaluationResult, as_card, evaluate, table
from raystill.run.experiments import prepare_experiment
from raystill.run.settings import Run
from raystill.run.trained import TrainedStudent
from raystill.targets.targets import TargetTransform, check_identity, start_law_of
from raystill.tracking.files import FileRun
from raystill.tracking.tracking import Tracking, tracked, tracking_uri
from raystill.training.task import averages_after

if TYPE_CHECKING:  # MLflow is an extra
    from raystill.tracking.registry import Registration
    from raystill.tracking.runs import TrackedRun

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Seconds:
    """Wall seconds of the stages of a job."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time one stage and say that it begins."""
        log.info("%s ...", name)
        began = time.monotonic()
        try:
            yield
        finally:
            self.stages[name] = self.stages.get(name, 0.0) + time.monotonic() - began


@dataclass(slots=True)
class DistillationResult:
    """The outcome of the main job."""

    registered: "Registration | None"  # None where MLflow, and so a registry, is not installed
    evaluated: EvaluationResult
    adapter: Path
    picture: Path
    left_out: str  # rejected samples with reasons, as lines of text; empty where there are none

    def __str__(self) -> str:
        """Return figures, rejected samples, registry address, what to type next and adapter directory as text."""
        caption = next(filter(None, self.evaluated.captions), "")
        model, place = shlex.quote(str(self.adapter)), "not registered: MLflow is not installed"
        if self.registered is not None:
            model, place = self.registered.uri, f"{self.registered.uri}: {self.registered.promotion.reason}"
        after = f"next: raystill sample {shlex.quote(caption)} --model {model}"
        return "\n".join(filter(None, [table(self.evaluated), self.left_out, place, after, str(self.adapter)]))


def check_inputs(run: Run) -> None:
    """Refuse, with UserError and before a worker starts, stores and shards that cannot be used."""
    open_store(run.work).check()
    if run.artifacts is not None and run.artifacts.startswith("s3://"):  # MLflow itself knows other places, too
        open_store(run.artifacts).check()
    Source.of(open_store(run.shards))


def distil(run: Run, launcher: Launcher, directory: Path, seconds: Seconds) -> DistillationResult:
    """Run every stage that an earlier, stopped run of the same settings has not finished; `directory` is local, for
    small outputs.
    """
    uri = tracking_uri(directory)
    prepare_experiment(uri, run.experiment, run.artifacts)
    with seconds.stage("targets"):
        targets, index = compute_targets(run, launcher)
    tracking = Tracking(
        uri=uri, experiment=run.experiment, name=run.name, inputs=inputs_of(run), without=untold(run, targets),
        artifact_root=run.artifacts, directory=directory.resolve(),
    )  # fmt: skip
    with seconds.stage("distillation"):
        checkpoints = train_student(run, targets, index, launcher, partial(tracked, tracking, run))
    with seconds.stage("evaluation"):
        trained = trained_student(run, checkpoints, targets, index)
        evaluated = evaluate(run, launcher, trained)
    with seconds.stage("registry"), tracked(tracking, run) as record:
        depends_on = {"run": run, "trained": trained.identity(), "evaluation": evaluated.digest}
        adapter = directory / "adapters" / fingerprint(depends_on)
        caption = next(filter(None, evaluated.captions), "")
        trained.write(adapter, run, evaluation=as_card(evaluated), picture=evaluated.picture, caption=caption)
        record.metrics(0, {"cost/teacher_calls_per_image": float(run.targets.estimator.calls)})
        record.metrics(0, {"cost/teacher_calls_per_sample": run.method.calls(run.training.steps)})
        for steps, figures in evaluated.student.items():
            record.metrics(run.training.steps, {f"evaluation/{name}_{steps}": value for name, value in figures.items()})
        record.picture("evaluation/grid", evaluated.picture, run.training.steps)
        registered = _register(uri, run.model, adapter, record)
    left_out = "\n".join(filter(None, [index.left_out, evaluated.left_out]))
    return DistillationResult(registered, evaluated, adapter, adapter / artifact.PICTURE_NAME, left_out)


def _register(uri: str | None, name: str, adapter: Path, record: "TrackedRun | FileRun") -> "Registration | None":
    """Register a run's adapter; None where there is no registry."""
    if isinstance(record, FileRun) or uri is None:  # one where the other is
        return None
    from raystill.tracking.registry import register

    return register(uri, name, adapter, record.run_id)


def inputs_of(run: Run) -> str:
    """The fingerprint of a run's source shards and teacher, which its settings name by their place only."""
    return fingerprint(Source.of(open_store(run.shards)).identity(teacher=revision(teacher_at(run.teacher))))


def untold(run: Run, targets: Store) -> tuple[str, ...]:
    """Paths of settings in which trainings that share a run's checkpoints may differ, before the run is trained."""
    return left_out(open_store(run.work), run.task, targets, teacher=revision(teacher_at(run.teacher)))


def checkpoints_of(run: Run, targets: Store) -> Store:
    """The store of the checkpoints of a run's training."""
    return checkpoints_at(open_store(run.work), run.task, targets, teacher=revision(teacher_at(run.teacher)))


def train_student(
    run: Run,
    targets: Store,
    index: Index,
    launcher: Launcher,
    recorder: MakeRecorder | None,
    until: int | None = None,
) -> Store:
    """Train a run's student to the end, or until a step, from where an earlier run stopped; returns its checkpoints."""
    return train_at(
        open_store(run.work), replace(run.task, targets=targets.uri), targets, index, launcher, recorder,
        name=run.name, until=until,
        teacher=revision(teacher_at(run.teacher)),
    )  # fmt: skip


def training_source(run: Run) -> Source:
    """The source shards that are trained on: those after the first ones, whose captions the evaluation draws; UserError
    where none is left.
    """
    source, held = Source.of(open_store(run.shards)), run.evaluation.shards
    if len(source.entries) <= held:
        raise UserError(
            f"{run.shards} has {len(source.entries)} shards, and evaluation.shards holds {held} of them out of the "
            "training; cut the pictures into more shards, or hold out fewer: --set evaluation.shards=1"
        )
    last = None if run.targets.shards is None else held + run.targets.shards
    return Source(source.store, source.entries[held:last])


def compute_targets(run: Run, launcher: Launcher) -> tuple[Store, Index]:
    """The store and index of the teacher's targets for every sample that is trained on, computed or found; UserError
    where those found were computed for something else.
    """
    source, identity, store = _targets_of(run)
    make, before, began = target_maker(run, launcher), _keys(store), time.monotonic()
    index = launcher.derive(Stage(source, store, identity, make, run.reading.max_bad_fraction))
    check_identity(index, identity, store.uri)
    _log_targets(store, index, run.targets.estimator.calls, computed_since(before, index), time.monotonic() - began)
    return store, index


def _targets_of(run: Run) -> tuple[Source, dict[str, Any], Store]:
    """The source shards of a run's targets, the identity that their index has, and the store where they are."""
    source, teacher = training_source(run), teacher_at(run.teacher)
    depends_on = {"stage": "targets", "teacher": revision(teacher), "reading": run.reading, "targets": run.targets}
    former = ({"teacher": value} for value in former_revisions(teacher))
    store, identity = adopted(open_store(run.work), "targets", source, depends_on, former)
    return source, identity, store


def stored_targets(run: Run) -> frozenset[str]:
    """The keys of the shards of a run's targets that are stored already."""
    return _keys(_targets_of(run)[2])


def _keys(store: Store) -> frozenset[str]:
    return frozenset(entry.key for entry in store.list())


def computed_since(before: frozenset[str], index: Index) -> int:
    """The number of samples in those shards of an index whose keys are not in `before`."""
    return sum(shard.count for shard in index.shards if shard.key not in before)


def target_maker(run: Run, launcher: Launcher) -> partial[TargetTransform]:
    """A function to be called where a stage runs, which makes the transform of a run's targets there."""
    settings = run.targets
    return partial(
        TargetTransform,
        run.teacher,
        settings.estimator,
        run.reading,
        settings.seed,
        settings.batch_size,
        settings.precision,
        launcher.stage_device,
        half=settings.half,
    )


def _log_targets(store: Store, index: Index, calls: int, computed: int, seconds: float) -> None:
    """Log where the targets are, and how fast those were computed that no earlier run had left."""
    log.info("%d targets at %s, %d teacher calls each", index.count, store.uri, calls)
    if computed:
        rate = computed / seconds
        log.info("computed %d of them at %.1f images/s, %.0f teacher calls/s", computed, rate, rate * calls)


def trained_student(
    run: Run, checkpoints: Store, targets: Store, index: Index, steps: int | None = None
) -> TrainedStudent:
    """The run's student after all of its training steps, or so many, with the start law of its targets where its method
    needs target means; else it starts from N(0, I).
    """
    averages = averages_after(checkpoints, steps or run.training.steps)
    assert averages is not None
    start = NORMAL
    if "target_mean" in run.method.needs:
        schedule = schedule_of(read_scheduler(teacher_at(run.teacher)))
        start = start_law_of(run.targets.estimator, schedule, targets, index)
    return TrainedStudent(run.task, checkpoints, run.sampling, start, averages)
