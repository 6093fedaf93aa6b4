"""The whole sweep: targets once, trials, report with pictures, and the best trial's adapter in the registry."""

import logging
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image
from ray import tune

from raystill.config.errors import UserError
from raystill.config.home import DIRECTORY
from raystill.evaluation.notes import notes_on
from raystill.evaluation.pictures import rendered
from raystill.evaluation.tables import markdown
from raystill.flow.efficiency import midpoints
from raystill.launch.launcher import LocalLauncher
from raystill.launch.placement import room
from raystill.methods.method import TIME_SAMPLER
from raystill.models.hub import teacher_at
from raystill.models.pipeline import teacher_facts
from raystill.run.distill import Seconds, checkpoints_of, compute_targets, distil, inputs_of
from raystill.run.evaluate import draw_teacher
from raystill.run.experiments import prepare_experiment
from raystill.run.jobs import surroundings
from raystill.run.settings import Run
from raystill.search.settings import Search
from raystill.search.trials import METRIC, last_line, state_of, tuned
from raystill.tracking.runs import TrackedRun
from raystill.tracking.tracking import Tracking, tracking_uri
from raystill.training.pictures import POINTS, typical_density
from raystill.training.task import newest_averages, read_averages

log = logging.getLogger(__name__)
SIGMA = "method.path.sigma"


@dataclass(frozen=True, slots=True)
class Trial:
    """The outcome of one trial."""

    config: Mapping[str, Any]
    steps: int  # steps that the trial was trained for, 0 where it failed before its first report
    quality: float  # mean log Frechet distance; infinite where the trial failed
    figures: Mapping[str, Mapping[str, float]]
    seconds: float
    targets: str  # uri of the targets that the trial read
    computed: int  # targets that the trial computed itself, which should be none
    error: str  # message of the trial's error; empty where there was none

    def state(self, whole: int) -> str:
        """How the trial ended, as text; `whole` is the number of steps of a whole training."""
        if self.error:
            return "failed"
        return "finished" if self.steps >= whole else f"stopped at {self.steps}"


def sweep(search: Search) -> str:
    """Run a sweep, or what a stopped one has left of it; return its report, and where report and adapter are."""
    search.check()
    uri, base = tracking_uri(DIRECTORY), search.base
    with surroundings(base) as launcher:
        prepare_experiment(uri, base.experiment, base.artifacts)
        concurrent = concurrent_trials(search)
        _, index = compute_targets(base, launcher)
        draw_teacher(base, launcher)
        tracking = Tracking(
            uri=uri, experiment=base.experiment, name=search.name, inputs=inputs_of(base), artifact_root=base.artifacts,
            directory=DIRECTORY.resolve(),
        )  # fmt: skip
        with TrackedRun(tracking, search) as parent:
            trials = run_trials(search, replace(tracking, tags={"mlflow.parentRunId": parent.run_id}), concurrent)
            first = best_trial(trials)
            pictures = draw_sweep(search, trials)
            for name, picture in pictures.items():
                parent.picture(f"sweep/{name}", picture, 0)
            best = distil(search.run_of(first.config), launcher, DIRECTORY, Seconds())
            assert best.registered is not None  # MLflow is there: the parent is a run of it
            text = sweep_report(search, trials, index.count, best.registered.uri, list(pictures))
            parent.metrics(
                0, {f"sweep/{METRIC}": first.quality, "cost/teacher_calls": calls(base, index.count, trials)}
            )
            report = search.report
            report.parent.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                picture.save(report.with_name(f"{report.stem}-{name}.png"))
            report.write_text(text)
            parent.text("report.md", text)
    return f"{text}\n{report}\n{best.registered.uri}"


def run_trials(search: Search, tracking: Tracking, concurrent: int) -> list[Trial]:
    """Run every trial, tracked as `tracking` says; UserError where all of them failed."""
    grid = tuned(search, tracking, concurrent)
    trials = [_trial(grid[i]) for i in range(len(grid))]
    if all(one.error for one in trials):
        raise UserError(
            f"all {len(trials)} trials failed; the first one: {trials[0].error}\n"
            f"They are not tried again; for a new beginning remove {state_of(search)}"
        )
    return trials


def best_trial(trials: Sequence[Trial]) -> Trial:
    """The trial of best quality among those that were trained the longest."""
    return min((one for one in trials if not one.error), key=lambda one: (-one.steps, one.quality))


def calls(run: Run, samples: int, trials: Sequence[Trial]) -> int:
    """The number of evaluations of the teacher's network for a sweep's targets, those that trials repeated included."""
    return (samples + sum(one.computed for one in trials)) * run.targets.estimator.calls


def concurrent_trials(search: Search) -> int:
    """How many trials the cluster holds at once; all of them where it grows."""
    return search.trials if search.base.cluster.grows else max(1, room(search.base.cluster.worker))


def _trial(result: tune.Result) -> Trial:
    metrics = result.metrics or {}
    return Trial(
        config=result.config or {},
        steps=int(metrics.get("step", 0)),
        quality=float(metrics.get(METRIC, math.inf)),
        figures=metrics.get("figures", {}),
        seconds=float(metrics.get("time_total_s", 0.0)),
        targets=str(metrics.get("targets", "")),
        computed=int(metrics.get("computed", 0)),
        error=last_line(result.error) if result.error else "",
    )


def draw_sweep(search: Search, trials: Sequence[Trial]) -> dict[str, Image.Image]:
    """Pictures by name: quality against sigma where it is searched, all settings of all trials, learned laws."""
    drawn = {"sigma": _sigma(search, trials)} if any(SIGMA in one.config for one in trials) else {}
    drawn["trials"] = _parallel(search, trials)
    laws = _laws(search, trials)
    return drawn if laws is None else {**drawn, "laws": laws}


def _sigma(search: Search, trials: Sequence[Trial]) -> Image.Image:
    """Frechet distance against sigma (figure 3 of arXiv:2503.07699), with other settings changing beside it."""
    figure, whole = Figure(figsize=(7, 4), layout="constrained"), search.base.training.steps
    axes = figure.subplots()
    for finished, marker in ((True, "o"), (False, "x")):
        some = [t for t in trials if SIGMA in t.config and t.steps and (t.steps >= whole) == finished]
        x, y = [float(t.config[SIGMA]) for t in some], [math.exp(t.quality) for t in some]
        axes.scatter(x, y, marker=marker, label="trained to the end" if finished else "stopped early")
    axes.set(xlabel="sigma", ylabel=f"Frechet distance at {', '.join(map(str, search.student_steps))} steps")
    axes.grid(alpha=0.3)
    axes.legend()
    return rendered(figure)


def _parallel(search: Search, trials: Sequence[Trial]) -> Image.Image:
    """Parallel coordinates: one line per trial over all settings, coloured by its distance, the best one thick; a
    setting that a trial does not have is left out.
    """
    paths = [domain.path for domain in search.space]
    figure = Figure(figsize=(2 + 1.4 * len(paths), 5), layout="constrained")
    axes = figure.subplots()
    heights = {path: _heights([t.config[path] for t in trials if path in t.config]) for path in paths}
    ranked = sorted((t for t in trials if t.steps), key=lambda t: (t.steps, -t.quality))
    distances = [math.exp(t.quality) for t in ranked]
    colours = ScalarMappable(Normalize(min(distances), max(distances)), "viridis")
    for one, colour in zip(ranked, colours.to_rgba(np.asarray(distances)), strict=True):
        points = [(i, heights[path][one.config[path]]) for i, path in enumerate(paths) if path in one.config]
        style = "-" if one.steps >= search.base.training.steps else ":"
        axes.plot(*zip(*points, strict=True), style, color=colour, linewidth=1 + 2 * (one is ranked[-1]))
    for i, path in enumerate(paths):
        axes.axvline(i, color="0.8", zorder=0)
        for value, height in heights[path].items():
            if isinstance(value, str) or height in (0.0, 1.0):
                text = value if isinstance(value, str) else f"{value:.3g}"
                axes.annotate(text, (i, height), fontsize=7, xytext=(3, 2), textcoords="offset points")
    figure.colorbar(
        colours, ax=axes, label=f"Frechet distance at {_listed(search.student_steps)} steps (dotted: stopped early)"
    )
    axes.set_xticks(range(len(paths)), [path.removeprefix("method.") for path in paths], rotation=20, fontsize=7)
    axes.set_yticks([])
    return rendered(figure)


def _heights(values: Sequence[Any]) -> dict[Any, float]:
    """Places of values on an axis from 0 to 1: numbers by their size, names by their order."""
    different = sorted(set(values), key=lambda v: (isinstance(v, str), v))
    if all(isinstance(v, int | float) for v in different) and len(different) > 1:
        low, high = min(different), max(different)
        return {v: (v - low) / (high - low) for v in different}
    return {v: (i + 0.5) / len(different) for i, v in enumerate(different)}


def _laws(search: Search, trials: Sequence[Trial]) -> Image.Image | None:
    """Densities of the laws of times that trials had learned when they ended; None where no trial learned one."""
    figure, launcher = Figure(figsize=(7, 4), layout="constrained"), LocalLauncher()
    axes, v = figure.subplots(), midpoints(POINTS)
    for one in trials:
        run = search.run_of(one.config) if one.steps else None
        times = None if run is None else run.method.learned_times
        if run is None or times is None:
            continue
        checkpoints = checkpoints_of(run, compute_targets(run, launcher)[0])
        tensors = read_averages(checkpoints, newest_averages(checkpoints))[TIME_SAMPLER]
        channels = teacher_facts(teacher_at(run.teacher)).channels
        curve = typical_density(times, tensors, channels, v)
        axes.plot(v.tolist(), curve.tolist(), label=f"{type(times).__name__}, {math.exp(one.quality):.4g}")
    if not axes.lines:
        return None
    axes.set(xlabel="quantile of t", ylabel="density q / p", title="learned laws of times, with the Frechet distance")
    axes.legend(fontsize=6)
    return rendered(figure)


def sweep_report(search: Search, trials: Sequence[Trial], samples: int, uri: str, pictures: Sequence[str]) -> str:
    """The report of a sweep as Markdown: what was searched, every trial from the best on, and its pictures."""
    base, whole = search.base, search.base.training.steps
    ended = sorted(trials, key=lambda one: (-one.steps, one.quality))
    paths = [domain.path for domain in search.space]
    head = [*(f"Frechet {n}" for n in base.evaluation.student_steps), "state", "seconds"]
    rows = [
        [
            *(_shown(one.config.get(path)) for path in paths),
            *(f"{one.figures[str(n)]['frechet']:.4g}" if one.figures else "-" for n in base.evaluation.student_steps),
            one.state(whole),
            f"{one.seconds:.0f}",
        ]
        for one in ended
    ]
    states = [one.state(whole).split()[0] for one in trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in ("finished", "stopped", "failed"))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "ray", "optuna"))
    read = {one.targets for one in trials if one.targets}
    text = (
        f"`raystill search`: {len(trials)} trials, {counts}, found by Optuna's TPE ({search.random} drawn at random "
        f"first) and ASHA, which lets one of {search.keep} go on at {_listed(search.rungs) or 'no'} steps of training; "
        f"{whole} steps of {base.training.step_size} samples at most. Quality is the mean log Frechet distance at "
        f"{_listed(search.student_steps)} sampling steps, on {_pictures(base)} of held-out captions. Targets: "
        f"{len(read)} set of {samples} samples, {calls(base, samples, trials)} teacher calls for all {len(trials)} "
        f"trials ({sum(one.computed for one in trials)} samples were computed by a trial itself). "
        f"The best trial's adapter is `{uri}`. Python {platform.python_version()}, {versions}."
    )
    names = [path.removeprefix("method.") for path in paths]
    links = [f"![{name}]({search.report.stem}-{name}.png)" for name in pictures]
    parts = [f"# {search.name}", text, notes_on(search.report)[0], markdown([*names, *head], rows), *links]
    return "\n\n".join(filter(None, parts)) + "\n"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _pictures(run: Run) -> str:
    each = run.evaluation.pictures
    return f"{run.evaluation.shards} shards" if each is None else f"{run.evaluation.shards * each} pictures"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
