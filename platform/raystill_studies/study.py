"""Studies: many variants of one run, several seeds each, measured alike and reported side by side.

Every run is a training of one process; as many of them run at once as the cluster has room for.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, fingerprint, identity, introduced, introduced_group
from raystill.config.home import DIRECTORY, REPORTS
from raystill.config.overrides import override
from raystill.data.derive import Source, Stage
from raystill.data.store import Store, open_store
from raystill.engine.protocol import NonFiniteError
from raystill.launch.launcher import Launcher, LocalLauncher
from raystill.methods.rayflow import RayFlow, as_rayflow
from raystill.models.hub import teacher_at
from raystill.models.pipeline import teacher_facts
from raystill.models.revision import is_of, revision
from raystill.models.sampling import Sampling
from raystill.run.checkpoints import open_ended
from raystill.run.distill import compute_targets, inputs_of, train_student, trained_student, untold
from raystill.run.evaluate import draw_teacher, evaluate, floor_of, read_rows
from raystill.run.experiments import prepare_experiment
from raystill.run.jobs import surroundings
from raystill.run.samples import Sampler, teacher_draw
from raystill.run.settings import Evaluation, Run
from raystill.run.trained import TrainedStudent
from raystill.run.validate import validate
from raystill.tracking.commit import code_commit
from raystill.tracking.tracking import Tracking, history, tracked, tracking_uri
from raystill_studies.gradients import GradientProbe, GradientTransform, efficiency
from raystill_studies.overlap import OverlapProbe, OverlapTransform, overlap
from raystill_studies.probes import Probe, ProbeTransform, means

log = logging.getLogger(__name__)
LOSS = "loss/student"
EARLIER = "earlier"  # key that marks a measurement by code that gave other numbers; it is made again


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One row of a table: the base run with changes."""

    label: Knob[str]
    changes: Mapping[str, Any] = introduced_group(dict)  # changed settings by path, as `override` takes them
    x: Knob[float | None] = None  # its place on the horizontal axis, where the question is drawn as a curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One table of the report, and a curve where its variants have an x."""

    title: Knob[str]
    text: Knob[str] = ""
    # whether stability, diversity and the error of x_0 along the path are also measured, beside the teacher's
    probes: bool = introduced(False)
    # whether it is also measured how well the law of times serves the gradient, and what the law costs
    gradients: bool = introduced(False)
    variants: tuple[Variant, ...]


class PlannedRun(NamedTuple):
    """One run of a study, and what is measured of it beside its pictures."""

    run: Run
    probes: bool
    gradients: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Settings of a study: a base run, the variants of every question, and the seeds."""

    name: Knob[str]
    base: Run
    questions: tuple[Question, ...]
    seeds: tuple[int, ...] = introduced((0, 1, 2))  # seeds of the training; targets and evaluation are shared
    probe: Probe = introduced_group(Probe)
    gradients: GradientProbe = introduced_group(GradientProbe)
    overlap: OverlapProbe = introduced_group(OverlapProbe)
    # directory of NAME.json with every measurement, NAME.md with what people write in NAME.notes.md, and pictures
    output: Knob[str] = REPORTS

    @property
    def results(self) -> Path:
        """The file of the measurements; what is there is not measured again."""
        return Path(self.output) / f"{self.name}.json"

    def runs(self) -> dict[str, PlannedRun]:
        """Every run by its key in the results: the first seed of all variants before the second one of any."""
        planned: dict[str, PlannedRun] = {}
        for seed, question in product(self.seeds, self.questions):
            for variant in question.variants:
                key, run = self.run_of(variant, seed)
                before = planned.get(key, PlannedRun(run, False, False))
                planned[key] = PlannedRun(run, question.probes or before.probes, question.gradients or before.gradients)
        return planned

    @property
    def teacher_key(self) -> str:
        """The fingerprint of what the teacher's own row depends on."""
        run = self.base
        return fingerprint([run.targets, run.reading, run.evaluation, self.probe, self.overlap])

    def run_of(self, variant: Variant, seed: int) -> tuple[str, Run]:
        """A variant's run with a seed. Its key is of what the figures depend on, not of names and places: equal runs
        under two labels are measured once.
        """
        run = override(self.base, {**variant.changes, "training.seed": seed})
        measured = (run.task, run.targets, run.reading, run.sampling, run.evaluation)
        return fingerprint([*measured, self.probe, self.gradients, self.overlap]), run


def measure_all(study: Study, *, local: bool = False) -> dict[str, Any]:
    """Measure every run that the results lack, and return all results; a stopped study goes on where it was."""
    results = read_results(study.results)
    if missing_of(study, results) or not _has_teacher(study, results):
        with surroundings(study.base, local=local) as launcher:
            measure_missing(study, results, launcher)
    return results


def measure_missing(study: Study, results: dict[str, Any], launcher: Launcher) -> int:
    """Measure every run that the results lack, and add and write each as it is done; return how many runs they were."""
    missing = missing_of(study, results)
    check_revision(study.base, study.results, results)
    if not _has_teacher(study, results):  # figures come with the runs
        known = {name: value for name, value in results.get("teacher", {}).items() if name != EARLIER}
        results["teacher"] = {**known, "of": study.teacher_key, **_probe_teacher(study, launcher)}
        write_results(study.results, results)
    _share(study, [one.run for one in missing.values()], launcher)
    todo = list(by_training(missing).values())
    done = launcher.each(partial(_measure_all, study), todo)
    for _, measured in tqdm(done, study.name, len(todo), unit="training"):
        for key, one in measured.items():
            results["teacher"] |= one.pop("teacher", {})
            results["runs"][key] = one
        write_results(study.results, results)
    return len(missing)


def missing_of(study: Study, results: Mapping[str, Any]) -> dict[str, PlannedRun]:
    """The runs that have not been measured yet, by key; UserError where a run's settings do not fit together."""
    planned, teacher = study.runs(), teacher_facts(teacher_at(study.base.teacher))
    for one in planned.values():
        validate(one.run, teacher, local=True)
        if one.gradients and as_rayflow(one.run.method) is None:
            raise UserError(
                f"gradients are of RayFlow's laws of times; found a variant with the method {one.run.method.name}"
            )
    there = {key for key, one in results["runs"].items() if EARLIER not in one}
    return {key: one for key, one in planned.items() if key not in there}


def _has_teacher(study: Study, results: Mapping[str, Any]) -> bool:
    """Whether the results hold the teacher's own row for this study."""
    found = results.get("teacher", {})
    return found.get("of") == study.teacher_key and "floor" in found and EARLIER not in found


def by_training(planned: Mapping[str, PlannedRun]) -> dict[str, dict[str, PlannedRun]]:
    """Runs in groups that share a training, or a part of it: two processes must not train it at once."""
    groups: dict[str, dict[str, PlannedRun]] = {}
    for key, one in planned.items():
        groups.setdefault(_training(one.run), {})[key] = one
    return groups


def _training(run: Run) -> str:
    """The fingerprint that runs have in common whose trainings are kept in the same place."""
    return fingerprint(identity(_trained_as(run), open_ended(run.task)))


def _trained_as(run: Run) -> Run:
    """A run as far as its training goes: how a student is sampled and compared changes nothing in the training, but for
    which shards are held out and which captions are drawn on the way.
    """
    evaluation = Evaluation(shards=run.evaluation.shards, captions=run.evaluation.captions)
    return replace(run, sampling=Sampling(), evaluation=evaluation)


def _tracking(study: Study, run: Run, targets: Store) -> Tracking:
    """The MLflow run that a run's training reports to; asked before the training begins."""
    return Tracking(
        uri=tracking_uri(DIRECTORY), experiment=study.name, name=_training(run), inputs=inputs_of(run),
        without=untold(run, targets), artifact_root=run.artifacts, directory=DIRECTORY.resolve(),
    )  # fmt: skip


def check_revision(base: Run, path: Path, results: dict[str, Any]) -> None:
    """Refuse, with UserError, to add to the results of another teacher."""
    ours = revision(teacher_at(base.teacher))
    found = results.setdefault("teacher_revision", ours)
    if not is_of(teacher_at(base.teacher), found):
        raise UserError(
            f"{path} holds results of the teacher {found}, and {base.teacher} is {ours}: move it away, "
            "or write elsewhere: --set output=DIRECTORY"
        )


def _share(study: Study, runs: Sequence[Run], launcher: Launcher) -> None:
    """Compute what runs have in common, on the whole cluster: their targets and the teacher's samples."""
    prepare_experiment(tracking_uri(DIRECTORY), study.name, study.base.artifacts)
    for run in {fingerprint(run.targets): run for run in runs}.values():
        compute_targets(run, launcher)
    draw_teacher(study.base, launcher)


def read_results(path: Path) -> dict[str, Any]:
    """The measurements of a results file; no runs where there is no file."""
    if not path.exists():
        return {"runs": {}}
    results: dict[str, Any] = json.loads(path.read_text())
    return results


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Replace the file of the measurements."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
    partial_file.replace(path)


def _measure_all(study: Study, planned: Mapping[str, PlannedRun]) -> dict[str, dict[str, Any]]:
    """Measure runs one after the other in this process, shorter trainings first: longer ones may go on from them."""
    ordered = sorted(planned.items(), key=lambda item: item[1].run.training.steps)
    return {key: _measure(study, one) for key, one in ordered}


def _measure(study: Study, planned: PlannedRun) -> dict[str, Any]:
    """Train, evaluate and probe one run in this process; a training that stops before a bad update is a result too."""
    run, launcher = planned.run, LocalLauncher()
    targets, index = compute_targets(run, launcher)
    tracking, trained_as = _tracking(study, run, targets), _trained_as(run)
    try:
        checkpoints = train_student(run, targets, index, launcher, partial(tracked, tracking, trained_as))
    except NonFiniteError as error:
        log.warning("%s", error)
        return {"failed": str(error)}
    trained = trained_student(run, checkpoints, targets, index)
    evaluated = evaluate(run, launcher, trained)
    return {
        "student": evaluated.student,
        "teacher": {"figures": evaluated.teacher},
        "steps": run.training.steps,
        "loss": history(tracking, trained_as, LOSS),
        "data_mse": history(tracking, trained_as, f"{LOSS}_data_mse"),
        "step_s": history(tracking, trained_as, "time/step_s"),
        "loss_variance": history(tracking, trained_as, "times/weighted_loss_variance"),
        "commit": code_commit(),
        "teacher_calls": run.targets.estimator.calls,
        "teacher_calls_in_training": run.method.calls(run.training.steps),  # for each sample
        **(_probes(study, run, trained, targets, launcher) if planned.probes else {}),
        **({"gradients": _gradients(study, trained, targets, launcher)} if planned.gradients else {}),
    }


def _probes(study: Study, run: Run, trained: TrainedStudent, targets: Store, launcher: Launcher) -> dict[str, Any]:
    """Stability and diversity of a trained student, and for RayFlow its error of x_0 along the path."""
    make, identity = partial(trained.draw, launcher.stage_device), {"probe": study.probe, **trained.identity()}
    probes = {"probes": _steady(run, _probe(run, study.probe, launcher, make, run.evaluation.student_steps, identity))}
    if (method := as_rayflow(run.method)) is None:
        return probes
    return {**probes, "overlap": _overlap(study, trained.assembly, method, targets, launcher, trained.identity())}


def _steady(run: Run, probes: dict[str, float]) -> dict[str, float]:
    """Probes without the Lipschitz estimates of a sampler that draws noise: a moved start would have other noise."""
    noisy = run.method.noisy(run.sampling)
    return {name: value for name, value in probes.items() if not (noisy and name.startswith("lipschitz"))}


def _gradients(study: Study, trained: TrainedStudent, targets: Store, launcher: Launcher) -> dict[str, Any]:
    """How well the law of times served a student, over some of its targets (`gradients.efficiency`)."""
    source = Source.of(targets, study.gradients.shards)
    make = partial(GradientTransform, trained.assembly, trained.task, study.gradients, launcher.stage_device)
    stage = Stage.at(
        open_store(study.base.work), "gradients", source, make,
        stage="gradients", probe=study.gradients, task=trained.task, **trained.identity(),
    )  # fmt: skip
    return efficiency(read_rows(stage.store, launcher.derive(stage)))


def _overlap(
    study: Study, build: Any, method: RayFlow, targets: Store, launcher: Launcher, depends_on: Mapping[str, Any]
) -> list[float]:
    """A student's error of x_0 along the paths of some of its targets, noisy end first."""
    source = Source.of(targets, study.overlap.shards)
    make = partial(OverlapTransform, build, method, study.overlap, launcher.stage_device)
    work, kept = open_store(study.base.work), {"stage": "overlap", "probe": study.overlap, **depends_on}
    stage = Stage.at(work, "overlap", source, make, **kept)
    return overlap(read_rows(stage.store, launcher.derive(stage)))


def _probe_teacher(study: Study, launcher: Launcher) -> dict[str, Any]:
    """The teacher's own row: the floor of Frechet distances, its stability and diversity, and its error of x_0 as a
    student that has learned nothing yet.
    """
    run, steps = study.base, study.base.evaluation.teacher_steps
    make = partial(teacher_draw, run.teacher, run.evaluation.guidance, launcher.stage_device)
    identity = {"teacher": revision(teacher_at(run.teacher)), "probe": study.probe, "guidance": run.evaluation.guidance}
    targets, _ = compute_targets(run, launcher)
    method = as_rayflow(run.method)
    assert method is not None
    untrained = {"untrained": run.task, "teacher": revision(teacher_at(run.teacher))}
    return {
        "floor": round(floor_of(run, launcher), 5),
        "probes": _probe(run, study.probe, launcher, make, steps, identity),
        "overlap": _overlap(study, run.task.build, method, targets, launcher, untrained),
    }


def diversity(run: Run, probe: Probe, drawn: Sampler, launcher: Launcher) -> dict[str, float]:
    """The diversity of pictures of one caption, by the number of steps."""
    make, steps = partial(drawn.draw, launcher.stage_device), run.evaluation.student_steps
    found = _probe(run, probe, launcher, make, steps, {"probe": probe, **drawn.identity()})
    return {str(n): found[f"diversity_{n}"] for n in steps}


def _probe(
    run: Run, probe: Probe, launcher: Launcher, make: Any, steps: tuple[int, ...], depends_on: Mapping[str, Any]
) -> dict[str, float]:
    """The means of the probes over captions, by their names."""
    source = Source.of(open_store(run.shards), probe.shards)
    features = run.evaluation.features
    transform = partial(ProbeTransform, make, steps, probe, run.reading, features)
    stage = Stage.at(
        open_store(run.work), "probes", source, transform, run.reading.max_bad_fraction,
        stage="probes", reading=run.reading, features=features, steps=steps, **depends_on,
    )  # fmt: skip
    return means(read_rows(stage.store, launcher.derive(stage)), steps)
