"""The report of a comparison: a table per budget, reference rows, tuning, and where the first entrant wins."""

import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter, SymmetricalLogLocator

from raystill.evaluation.notes import notes_on
from raystill.evaluation.tables import markdown
from raystill.methods.method import STUDENT
from raystill.run.settings import Run
from raystill.search.space import Choice, Range
from raystill_studies.comparison import SECONDS, UPDATES, Comparison
from raystill_studies.floor import above_floor
from raystill_studies.report import STEPS, Measured, commits_of, earlier, floor_line, measured, spread, teacher_table
from raystill_studies.study import EARLIER, Question, Study

QUALITY = ("frechet", "kernel", "lpips_teacher")
CHARTS = {UPDATES: "updates", SECONDS: "seconds"}  # title of a budget -> its name in the files of charts
HEADS = {"frechet": "above floor", "kernel": "kernel", "lpips_teacher": "agreement"}


def report(comparison: Comparison, study: Study, results: Mapping[str, Any]) -> str:
    """The report of a comparison as Markdown."""
    results = above_floor(results)
    notes, _ = notes_on(comparison.results)
    parts = [
        f"# {comparison.name}", _notice(study, results), notes, _head(comparison, study, results),
        _left_out(comparison, results),
    ]  # fmt: skip
    parts += [teacher_table(results["teacher"]), _references(comparison, results)]
    for number, question in enumerate(study.questions, 1):
        parts += [f"## {number}. {question.title.capitalize()}", _tables(comparison, study, question, results)]
        parts.append(_ranks(comparison, study, question, results))
        parts.append("Dotted lines: the best solver that needs no training.")
        parts.append(f"![Frechet distances of every method]({chart_path(comparison, question).name})")
    picture = comparison.results.with_suffix(".png")
    if picture.exists():  # a stopped comparison may have none yet
        parts += ["## Pictures", "Of the first budget and seed; every column has the same starts."]
        parts.append(f"![Captions, and every method at 1 and 4 steps]({picture.name})")
    parts += ["## Tuning", _tuning(comparison, results)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _notice(study: Study, results: Mapping[str, Any]) -> str:
    """Lines on runs that earlier code measured; empty where there are none."""
    notice = earlier([results["runs"][key] for key in study.runs() if key in results["runs"]])
    marked = "Rows marked * hold such runs; places and ratios between them and others are of two codes."
    return f"{notice} {marked}" if notice else ""


def chart_path(comparison: Comparison, question: Question) -> Path:
    """The path of a budget's chart, beside the results."""
    return comparison.results.with_name(f"{comparison.name}-{CHARTS[question.title]}.png")


def chart(comparison: Comparison, study: Study, question: Question, results: Mapping[str, Any]) -> Figure:
    """A figure of the Frechet distances of a budget with their spread over seeds, the best at four steps on top; dotted
    lines are those of the best solver without training at each number of steps.
    """
    results = above_floor(results)
    found = {variant.label: measured(study, variant, results) for variant in question.variants}
    order = {label: statistics.fmean(values) for label in found if (values := _distances(found[label], "4"))}
    labels = sorted(order, key=order.__getitem__, reverse=True)
    figure = Figure(figsize=(8, 0.27 * len(labels) + 1.3), layout="constrained")
    axes = figure.subplots()
    for n, colour in zip(STEPS, ("C3", "C1", "C0", "C2"), strict=True):
        of = {row: values for row, label in enumerate(labels) if (values := _distances(found[label], n))}
        means = [statistics.fmean(values) for values in of.values()]
        spreads = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in of.values()]
        axes.errorbar(
            means, list(of), xerr=spreads, fmt="o", color=colour, capsize=2, label=f"{n} step{'s' * (n != '1')}"
        )
        solvers = [results["solvers"][label]["figures"] for label in comparison.references()]
        if drawn := [figures[n]["frechet"] for figures in solvers if n in figures]:
            axes.axvline(min(drawn), color=colour, linestyle=":")
    axes.set_xscale("symlog", linthresh=1.0)  # as near the floor as 0, or below it
    axes.set(xlabel=f"Frechet distance above its floor, {question.title}")
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(SymmetricalLogLocator(base=10, linthresh=1.0, subs=(2, 3, 5)))
    axes.xaxis.set_minor_formatter(ScalarFormatter())
    marks = [" *" * any(EARLIER in one for one in found[label].values()) for label in labels]
    axes.set_yticks(range(len(labels)), [f"{label}{mark}" for label, mark in zip(labels, marks, strict=True)])
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return figure


def _distances(found: Measured, n: str) -> list[float]:
    """Frechet distances at a number of steps, by seed."""
    return [one["student"][n]["frechet"] for one in found.values() if n in one["student"]]


def _left_out(comparison: Comparison, results: Mapping[str, Any]) -> str:
    """Lines that name the entrants that are left out because their trials failed."""
    labels = [entrant.label for entrant in comparison.entrants]
    failed = {n: one["failed"] for n, one in results["tuned"].items() if n in labels and "failed" in one}
    return "\n".join(f"- {label} is left out: {why}" for label, why in failed.items())


def _head(comparison: Comparison, study: Study, results: Mapping[str, Any]) -> str:
    run = comparison.base
    planned = study.runs()
    done = [results["runs"][key] for key in planned if key in results["runs"]]
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray", "deepspeed"))
    each, shards = run.evaluation.pictures, run.evaluation.shards
    pictures = f"{shards} shards of" if each is None else f"{shards * each}"
    stopped = sum("failed" in one for one in done)
    return (
        f"{len(done)} of {len(planned)} runs are measured, {stopped} of which stopped before a bad update; seeds "
        f"{', '.join(map(str, comparison.seeds))}. Teacher `{run.teacher}`, guidance {run.evaluation.guidance:g}; "
        f"{run.training.step_size} samples a step, one process of {run.cluster.worker}; {pictures} captions held out "
        f"of the distillation, {run.evaluation.features} features. The first budget is {comparison.updates} updates "
        f"of the student, the second {comparison.seconds:g} seconds of one process, stored targets included. Seconds "
        "are of a process alone on one machine: the number of steps times their mean, of trainings timed in turn, "
        "without the wait for data; peak memory is above that of its imports. "
        f"{floor_line(results['teacher'])} Kernel distances are from real pictures, too, and unbiased; "
        "agreement is the LPIPS (smaller is nearer) to the teacher's "
        f"{run.evaluation.reference_steps} guided steps from the same start, diversity the mean distance of features "
        f"between pictures of one caption, of {comparison.probe.captions} samples. Means ± standard deviations over "
        f"seeds; every measurement is in `{comparison.results.name}`. Commits {commits_of(done)}; Python "
        f"{platform.python_version()}, {versions}."
    )


def _references(comparison: Comparison, results: Mapping[str, Any]) -> str:
    """The section on the teacher with solvers that need no training."""
    head = ["teacher", *(f"{HEADS[name]} {n}" for name in QUALITY for n in STEPS), *_diversities()]
    rows = []
    for label in comparison.references():
        found = results["solvers"][label]
        figures, diversity = found["figures"], found["diversity"]
        cells = [f"{figures[n][name]:.4g}" if n in figures else "-" for name in QUALITY for n in STEPS]
        own = [f"{diversity[n]:.3g}" if n in diversity else "-" for n in STEPS]
        rows.append([label, *cells, *own])
    text = (
        "A guided step is two calls of the network, any other one, as a student's. Students that DDIM samples begin as "
        "the last row; those with samplers of their own begin elsewhere."
    )
    return f"## Solvers that need no training\n\n{text}\n\n{markdown(head, rows)}"


def _tables(comparison: Comparison, study: Study, question: Question, results: Mapping[str, Any]) -> str:
    quality, others, cost = [], [], []
    papers = {entrant.label: entrant.paper or entrant.method.paper for entrant in comparison.entrants}
    for variant in question.variants:
        found = measured(study, variant, results)
        run = study.run_of(variant, comparison.seeds[0])[1]
        paper = ", ".join(f"[{one}](https://arxiv.org/abs/{one})" for one in papers[variant.label].split(", "))
        done = f"{len(found)} of {len(comparison.seeds)}"
        label = variant.label if len(found) == len(comparison.seeds) else f"{variant.label} ({done} seeds)"
        label += " *" * any(EARLIER in one for one in found.values())
        quality.append([label, paper, *_cells(found, ("frechet",)), *_cells(found, ("kernel",))])
        others.append([label, *_cells(found, ("lpips_teacher",)), *_diverse(found)])
        cost.append([label, *_costs(run, results["costs"][variant.label])])
    steps = [[f"{HEADS[name]} {n}" for n in STEPS] for name in QUALITY]
    tables = [
        markdown(["", "paper", *steps[0], *steps[1]], quality),
        markdown(["", *steps[2], *_diversities()], others),
        markdown(
            ["", "updates of the student", "steps", "teacher calls per image", "seconds", "of these stored targets",
             "peak memory, GiB"],
            cost,
        ),
    ]  # fmt: skip
    return "\n\n".join(tables)


def _diversities() -> list[str]:
    return [f"diversity {n}" for n in STEPS]


def _cells(found: Measured, names: Sequence[str]) -> list[str]:
    of_steps = [one["student"] for one in found.values()]
    return [spread([figures[n][name] for figures in of_steps if n in figures]) for name in names for n in STEPS]


def _diverse(found: Measured) -> list[str]:
    probes = [one["probes"] for one in found.values() if "probes" in one]
    return [spread([p[f"diversity_{n}"] for p in probes if f"diversity_{n}" in p]) for n in STEPS]


def _costs(run: Run, cost: Mapping[str, Any]) -> list[str]:
    """The cells of a row of costs: updates, steps, teacher calls per image that was trained on, seconds with those of
    targets, seconds of targets, and memory.
    """
    steps, method = run.training.steps, run.method
    updates = sum(STUDENT in method.turn(step) for step in range(steps))
    stored = run.targets.estimator.calls * cost["targets"] / (steps * run.training.step_size)
    spent = cost["targets"] * cost["target_s"]
    return [
        str(updates), str(steps), f"{method.calls(steps) + stored:.3g}", f"{spent + steps * cost['step_s']:.0f}",
        f"{spent:.0f}", f"{cost['peak_gib']:.2f}",
    ]  # fmt: skip


def _ranks(comparison: Comparison, study: Study, question: Question, results: Mapping[str, Any]) -> str:
    """Lines that give the first entrant's rank among other methods at each number of steps, by mean Frechet distances,
    of entrants of which no seed failed; and ratios of its distances to the best other one's at the same seeds.
    """
    methods = {entrant.label: entrant.method.name for entrant in comparison.entrants}
    own = {label for label, name in methods.items() if name == comparison.entrants[0].method.name}
    own.discard(comparison.entrants[0].label)
    every = {v.label: measured(study, v, results) for v in question.variants if v.label not in own}
    whole = {label: found for label, found in every.items() if len(found) == len(comparison.seeds)}
    first = comparison.entrants[0].label
    if first not in whole:
        return f"{first} has no place: its runs were not all measured."
    lines = []
    for n in STEPS:
        values = {label: distances for label, found in whole.items() if (distances := _distances(found, n))}
        order = sorted(values, key=lambda label: statistics.fmean(values[label]))
        others = [label for label in order if label != first]
        if first not in values or not others:
            continue
        ratios = [one / other for one, other in zip(values[first], values[others[0]], strict=True) if other > 0]
        lines.append(
            f"- {n} step{'s' * (n != '1')}: {first} is number {order.index(first) + 1} of {len(order)}; its distance "
            f"over that of {others[0]}, the best other one, is {spread(ratios)}."
        )
    return "\n".join(lines)


def _tuning(comparison: Comparison, results: Mapping[str, Any]) -> str:
    """The section on tuning: what was tried of each entrant, and the settings that were taken."""
    rows = []
    for entrant in comparison.entrants:
        if entrant.label not in results["tuned"]:  # of a comparison of some of them
            continue
        found, steps = results["tuned"][entrant.label], comparison.search(entrant).student_steps
        searched = ", ".join(f"{_short(domain.path)} {_domain(domain)}" for domain in entrant.space)
        if "failed" in found:
            rows.append([entrant.label, searched, "-", "all failed", "-", "-"])
            continue
        taken = ", ".join(f"{_short(path)} {_value(value)}" for path, value in found["config"].items())
        ended = sorted(one["quality"] for one in found["trials"] if not one["error"])
        distances = f"{math.exp(ended[0]):.4g} to {math.exp(ended[-1]):.4g}"
        rows.append([entrant.label, searched, taken, str(len(ended)), ", ".join(map(str, steps)), distances])
    text = (
        f"{comparison.trials} trials of the sweep tool for each method: its own settings{_first(comparison)}, then "
        "what Optuna's TPE proposes of its space. They are trained for the first budget and compared on the held-out "
        "captions and pictures of this page, with another seed of the training and other starts; the best one's "
        "settings serve both budgets. Its distance is the geometric mean of the Frechet distances, floor "
        "included, at the steps that are named, of one seed each: neighbours in this column cannot be told apart."
    )
    return f"{text}\n\n{markdown(['', 'searched', 'taken', 'trials', 'at steps', 'distance, best to worst'], rows)}"


def _first(comparison: Comparison) -> str:
    """The changes that the first trials make to a method's own settings, as text."""
    paths = dict.fromkeys(path for point in comparison.first for path in point)
    given = [f"{_short(path)} {', '.join(_value(p[path]) for p in comparison.first if path in p)}" for path in paths]
    return f" with {' and '.join(given)} in turn" if given else ""


def _short(path: str) -> str:
    """The path of a setting as text for tables."""
    return path.removeprefix("method.") if path != "method.learning_rate" else "adversary's learning_rate"


def _domain(domain: Choice | Range) -> str:
    """What a search space offers of a setting, as text."""
    return (" to " if isinstance(domain, Range) else " or ").join(map(_value, domain.extremes))


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
