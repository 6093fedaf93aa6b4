"""A comparison of methods: targets, tuning, costs, trainings of two budgets, training-free solvers, and the report."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from PIL.Image import Image
from tqdm import tqdm

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.config.home import DIRECTORY
from raystill.data.records import Row
from raystill.evaluation.pictures import grid
from raystill.launch.launcher import Launcher, LocalLauncher
from raystill.launch.placement import threads_of
from raystill.run.distill import compute_targets, inputs_of, train_student, trained_student
from raystill.run.evaluate import draw_student, draw_teacher, evaluate, read_rows
from raystill.run.experiments import prepare_experiment
from raystill.run.jobs import surroundings
from raystill.run.samples import Solver
from raystill.run.settings import Run
from raystill.tracking.commit import code_commit
from raystill.tracking.runs import TrackedRun
from raystill.tracking.tracking import Tracking, tracking_uri
from raystill_studies.compare_report import chart, chart_path, report
from raystill_studies.comparison import UPDATES, Comparison, Entrant
from raystill_studies.costs import Cost, comparable, machine, mean, timed
from raystill_studies.study import (
    EARLIER,
    Study,
    check_revision,
    diversity,
    measure_missing,
    read_results,
    write_results,
)

log = logging.getLogger(__name__)
SHOWN = (1, 4)  # steps of the picture's columns
AT_ONCE = 2  # trials of one entrant, at most: proposals depend on which trials have ended
UNCAPTIONED = 4  # rows of the picture, at most, of samples that are read without their captions


def launch_comparison(comparison: Comparison) -> str:
    """Measure what a comparison lacks, write the report and return it. A stopped comparison goes on where it was."""
    comparison.check()
    results = read_results(comparison.results)
    with surroundings(comparison.base) as launcher:
        check_revision(comparison.base, comparison.results, results)
        prepare_experiment(tracking_uri(DIRECTORY), comparison.base.experiment, comparison.base.artifacts)
        by_teacher = read_rows(*draw_teacher(comparison.base, launcher))
        _pictures(by_teacher, comparison.base.evaluation.captions, comparison.base.evaluation.reference_steps)
        tuned = _prepare(comparison, results, launcher)
        study = comparison.study(tuned, seconds_steps(comparison, results, tuned))
        shown = replace(study, seeds=study.seeds[:1], questions=study.questions[:1])  # first, while students are there
        path, picture = (comparison.results.with_suffix(suffix) for suffix in (".md", ".png"))
        try:
            new = measure_missing(entering(comparison, shown), results, launcher)
            if not picture.exists() or (new and not comparison.only):  # else the others would be trained for it
                draw_comparison(comparison, shown, results, by_teacher, launcher).save(picture)
            measure_missing(entering(comparison, study), results, launcher)
        finally:  # a stopped comparison has a page, too
            if {"figures", "floor"} <= set(results.get("teacher", {})):
                for question in study.questions:
                    chart(comparison, study, question, results).savefig(chart_path(comparison, question), dpi=110)
                path.write_text(report(comparison, study, results))
    return f"{path.read_text()}\n{path}"


def _prepare(comparison: Comparison, results: dict[str, Any], launcher: Launcher) -> dict[str, dict[str, Any]]:
    """Measure the reference rows, tune every entrant and measure the costs, each again only where what it depends on
    changed; return the tuned settings by label.
    """

    def keep(part: str, label: str, depends_on: Any, measure: Callable[[], dict[str, Any]]) -> None:
        of = fingerprint(depends_on)
        found = results.setdefault(part, {}).get(label, {})
        if found.get("of") != of or "failed" in found or EARLIER in found:
            results[part][label] = {"of": of, **measure(), "commit": code_commit()}
            write_results(comparison.results, results)

    base = comparison.base
    for label, solver in comparison.references().items():
        keep(
            "solvers",
            label,
            [solver.identity(), base.evaluation, base.reading, comparison.probe],
            partial(_of_solver, comparison, solver, launcher),
        )
    for entrant in comparison.entering:
        search = comparison.search(entrant)
        keep("tuned", entrant.label, search, partial(_tuned, comparison, entrant, launcher))
    tuned = {label: found["config"] for label, found in results["tuned"].items() if "config" in found}
    runs = {
        e.label: comparison.run_of(e, comparison.steps(e), tuned[e.label])
        for e in comparison.entrants
        if e.label in tuned
    }
    if not runs:
        raise UserError("every trial of every entrant failed; see what they say in the results")
    _time(comparison, runs, results, launcher)
    return {label: tuned[label] for label in results["costs"]}


def _time(comparison: Comparison, runs: Mapping[str, Run], results: dict[str, Any], launcher: Launcher) -> None:
    """Measure the costs of all trainings, in turn in every round, since machines do not stay as fast as they are. Each
    cost is written as it is measured.
    """
    threads, rounds = threads_of(comparison.base.cluster.worker), comparison.rounds
    counts = {label: compute_targets(run, launcher)[1].count for label, run in runs.items()}
    of = {
        label: fingerprint([run.task, run.targets, run.targets.batch_size, run.training.checkpointing, threads, rounds])
        for label, run in runs.items()
    }
    known = costs = results.get("costs", {})
    if not comparison.only:  # else other costs would be other budgets, of which the rows that stay know nothing
        known = comparable({n: cost for n, cost in costs.items() if EARLIER not in cost}, of, rounds, machine())
    measured = {entrant.label for entrant in comparison.entering}
    there = results["costs"] = {
        label: {"of": of[label], "machine": machine(), "rounds": [], **known.get(label, {}), "targets": counts[label]}
        for label in runs
        if label in known or label in measured
    }
    todo = [(label, i) for i in range(rounds) for label, cost in there.items() if i >= len(cost["rounds"])]
    for label, i in tqdm(todo, "costs", unit="training"):
        every = [*there[label]["rounds"], asdict(timed(runs[label], threads, i / rounds))]
        there[label] |= {"rounds": every, **asdict(mean([Cost(**one) for one in every]))}
        write_results(comparison.results, results)


def entering(comparison: Comparison, study: Study) -> Study:
    """A study with only those variants whose entrants are to be measured."""
    labels = {entrant.label for entrant in comparison.entering}
    kept = [replace(q, variants=tuple(v for v in q.variants if v.label in labels)) for q in study.questions]
    return replace(study, questions=tuple(kept))


def _of_solver(comparison: Comparison, solver: Solver, launcher: Launcher) -> dict[str, Any]:
    """Figures and diversity of the teacher, sampled by a solver."""
    return {
        "figures": evaluate(comparison.base, launcher, solver).student,
        "diversity": diversity(comparison.base, comparison.probe, solver, launcher),
    }


def _tuned(comparison: Comparison, entrant: Entrant, launcher: Launcher) -> dict[str, Any]:
    """Run an entrant's trials; return them with the settings of the best one, or why all of them failed."""
    from raystill.search.sweep import (  # Ray reads once, when it is imported, which lines it shall not show
        best_trial,
        concurrent_trials,
        run_trials,
    )

    search, base = comparison.search(entrant), comparison.base
    compute_targets(search.base, launcher)
    draw_teacher(search.base, launcher)
    tracking = Tracking(
        uri=tracking_uri(DIRECTORY), experiment=base.experiment, name=search.name, inputs=inputs_of(base),
        artifact_root=base.artifacts, directory=DIRECTORY.resolve(),
    )  # fmt: skip
    log.info("%d trials of %s ...", search.trials, entrant.label)
    with TrackedRun(tracking, search) as parent:
        child = replace(tracking, tags={"mlflow.parentRunId": parent.run_id})
        try:
            trials = run_trials(search, child, min(AT_ONCE, concurrent_trials(search)))
        except UserError as error:
            log.warning("%s is left out: %s", entrant.label, error)
            return {"failed": str(error)}
    tried = [
        {"config": dict(t.config), "steps": t.steps, "error": t.error, **({} if t.error else {"quality": t.quality})}
        for t in trials
    ]
    config = {path: value for path, value in best_trial(trials).config.items() if path != "training.seed"}
    return {"config": config, "trials": tried}


def seconds_steps(
    comparison: Comparison, results: Mapping[str, Any], tuned: Mapping[str, Mapping[str, Any]]
) -> dict[str, int]:
    """Training steps in the second budget, by label: as many as its seconds hold beside the entrant's targets.
    UserError where that is less than two steps.
    """
    steps = {}
    for label in tuned:
        cost = results["costs"][label]
        spent = cost["targets"] * cost["target_s"]
        steps[label] = int((comparison.seconds - spent) / cost["step_s"])
        if steps[label] < 2:
            raise UserError(
                f"seconds is {comparison.seconds:g}, of which the targets of {label} take {spent:.0f}: write more, "
                f"such as --set seconds={2 * spent + 60:.0f}"
            )
    return steps


def draw_comparison(
    comparison: Comparison, study: Study, results: Mapping[str, Any], by_teacher: list[Row], launcher: Launcher
) -> Image:
    """A grid of pictures: rows are captions and some samples without, columns the teacher and every method at one and
    four steps, of the first seed and budget.
    """
    settings, local = comparison.base.evaluation, LocalLauncher()
    columns = [_pictures(by_teacher, settings.captions, settings.reference_steps)]
    labels = [f"teacher {settings.reference_steps}"]
    for variant in next(q for q in study.questions if q.title == UPDATES).variants:
        key, run = study.run_of(variant, comparison.seeds[0])
        if "failed" in results["runs"].get(key, {"failed": "not measured"}):
            continue
        targets, index = compute_targets(run, launcher)
        checkpoints = train_student(run, targets, index, local, None)  # nothing, where its checkpoints are still there
        rows = draw_student(run, launcher, trained_student(run, checkpoints, targets, index))
        for steps in (n for n in SHOWN if n in run.evaluation.student_steps):
            columns.append(_pictures(rows, settings.captions, steps))
            labels.append(f"{variant.label} {steps}")
    cells = [list(row) for row in zip(*columns, strict=True)]
    names = [*settings.captions, *["(no caption)"] * (len(cells) - len(settings.captions))]
    return grid(cells, names, labels, font_size=10, label_width=70)


def _pictures(rows: list[Row], captions: tuple[str, ...], steps: int) -> list[Any]:
    """Pictures of captions, then of some samples without; UserError for captions of which none was drawn."""
    by_caption = {str(row["caption"]): row[f"image_{steps}"] for row in rows}
    if absent := [caption for caption in captions if caption not in by_caption]:
        raise UserError(
            f"base.evaluation.captions has {', '.join(absent)}, of which no picture is evaluated; there are "
            f"{', '.join(list(by_caption)[:12])} ..."
        )
    without = [row[f"image_{steps}"] for row in rows if not row["caption"]]
    return [*(by_caption[caption] for caption in captions), *without[:UNCAPTIONED]]
