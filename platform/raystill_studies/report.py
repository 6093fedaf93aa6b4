"""The report of a study: a table per question with mean and standard deviation over seeds, and curves."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from matplotlib.figure import Figure

from raystill.evaluation.notes import notes_on
from raystill.evaluation.tables import markdown
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import LearnedTimes
from raystill.flow.times import UniformTimes
from raystill.run.settings import Run
from raystill_studies.floor import above_floor
from raystill_studies.study import EARLIER, Question, Study, Variant, measure_all

Measured = Mapping[int, Mapping[str, Any]]  # measurements of the runs of a variant, by seed
STEPS = ("1", "2", "4", "8")
SMOOTHED = 5  # reports of a training whose mean is compared
PAIRS = "Ratios to the first row, of runs with the same seed: what a seed does to all rows is not in their spread."
PROBES = """How far an output moves, relative to its start, where that moves a little (of latents, in Euclidean norms),
the mean distance of features between pictures of one caption from independent starts, and the squared error of x_0
along the path, as a share of the variance of x_0: a mean over the same eight signal-to-noise ratios for every path, on
targets that were trained on, path noise included. Starts are counted as the normal numbers that they are made from. A
sampler that draws noise has no such estimate of stability: a moved start would draw other noise."""
GRADIENTS = """For each law of times, with the student that was trained with it: the second moment of the weighted
gradient over that under the objective's own law; the same of the best law that knows the time alone; their quotient;
the variance of the weighted loss over that with uniform times; steps of training to the final loss of uniform times (a
training loss, smoothed over five reports, with the number of seeds that came so far; uniform's own row is what noise
does to this); the time of these steps over that of all of uniform's, from the costs in the last column; their wall
seconds, on a machine that ran another training meanwhile; and what drawing and learning take of a student's forward and
backward, on one rank."""
WITHIN, COST = 1.2, 0.05  # what is asked of a learned law: its ratio over the best one's, and its share of a step
SHORT = {"frechet": "above floor", "frechet_teacher": "to teacher", "kernel": "kernel", "lpips_teacher": "LPIPS"}
FIGURES = {
    "frechet": "Frechet distance above its floor",
    "frechet_teacher": "to its own 50 steps",
    "kernel": "kernel distance",
    "lpips_teacher": "LPIPS to the teacher's sample",
}


def launch_study(study: Study, *, local: bool = False) -> str:
    """Measure what a study's results lack, write the report and return it."""
    text = report(study, measure_all(study, local=local))
    path = study.results.with_suffix(".md")
    path.write_text(text)
    return f"{text}\n{path}"


def report(study: Study, results: Mapping[str, Any]) -> str:
    """The report of a study as Markdown; draws its pictures beside the results."""
    results = above_floor(results)
    lead, notes = notes_on(study.results, [question.title for question in study.questions])
    parts = [_head(study, results, lead), teacher_table(results["teacher"])]
    for number, question in enumerate(study.questions, 1):
        rows = [(variant, measured(study, variant, results)) for variant in question.variants]
        parts += [f"## {number}. {question.title}", question.text, _table(rows)]
        if question.probes:
            parts += [PROBES, _probes(rows, results["teacher"])]
        if question.gradients:
            picture = study.results.with_name(f"{study.name}-{number}-laws.png")
            _laws(rows).savefig(picture, dpi=110)
            parts += [GRADIENTS, _gradients(rows), _verdicts(rows), f"![The laws of times]({picture.name})"]
        if all(variant.x is not None for variant in question.variants):
            picture = study.results.with_name(f"{study.name}-{number}.png")
            _curve(question, rows).savefig(picture, dpi=110)
            parts.append(f"![{question.title}]({picture.name})")
        parts.append(notes.get(question.title, ""))
    return "\n\n".join(filter(None, parts)) + "\n"


def measured(study: Study, variant: Variant, results: Mapping[str, Any]) -> Measured:
    """The measurements of a variant, by seed; runs are left out whose training stopped before a bad update."""
    found = {seed: results["runs"].get(study.run_of(variant, seed)[0]) for seed in study.seeds}
    return {seed: one for seed, one in found.items() if one is not None and "failed" not in one}


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, as text; a dash where nothing was measured."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.4g}" if len(values) == 1 else f"{mean:.4g} ± {statistics.stdev(values):.2g}"


def _head(study: Study, results: Mapping[str, Any], lead: str) -> str:
    training, run = study.base.training, study.base
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray", "deepspeed"))
    planned, runs = study.runs(), results["runs"]
    done = [runs[key] for key in planned if key in runs]
    stopped = sum("failed" in one for one in done)
    lines = [
        f"{len(done)} of {len(planned)} runs are measured, {stopped} of which stopped before a bad update; seeds",
        f"{', '.join(map(str, study.seeds))}. {training.steps} steps of {training.step_size} samples;",
        "Calls are the teacher's for each target, stored once; those in training are for each sample of a step.",
        f"Teacher `{run.teacher}`; {_pictures(run)} held-out captions, {run.evaluation.features}.",
        f"{floor_line(results['teacher'])} Kernel distances are unbiased: theirs is 0.",
        f"Means ± standard deviations over seeds; every measurement is in `{study.results.name}`.",
        f"Commits {commits_of(done)}; Python {platform.python_version()}, {versions}.",
    ]
    return "\n\n".join(filter(None, [f"# {study.name}", earlier(done), lead, "\n".join(lines)]))


def floor_line(teacher: Mapping[str, Any]) -> str:
    """A sentence that says what the floor of the Frechet distances is."""
    return (
        "Frechet distances to real pictures are above their floor, the distance between two sets of as many of the "
        f"teacher's own samples: {teacher['floor']:.4g}."
    )


def earlier(done: Sequence[Mapping[str, Any]]) -> str:
    """A line on measurements by code that gave other numbers than the present one's; empty where there is none."""
    count = sum(EARLIER in one for one in done)
    return (
        f"**{count} of {len(done)} runs were measured by earlier code, whose paths, laws of times, adversaries or "
        "random numbers were others (`docs/log.md`): the present one gives other figures. The line below measures them "
        "again.**"
        if count
        else ""
    )


def commits_of(done: Sequence[Mapping[str, Any]]) -> str:
    """The commits of the code that measured, shortened, with a mark where files had been edited."""
    names = (str(one["commit"]).partition("-") for one in done if "commit" in one)
    return ", ".join(sorted({f"{commit[:10]}{dash}{mark}" for commit, dash, mark in names}))


def _pictures(run: Run) -> str:
    """How many pictures are compared, as text."""
    each, shards = run.evaluation.pictures, run.evaluation.shards
    return f"all of {shards} shards'" if each is None else f"the first {each} of each of {shards} shards'"


def teacher_table(teacher: Mapping[str, Any]) -> str:
    """A table of the teacher's own figures at each number of steps."""
    figures, probes = teacher["figures"], teacher["probes"]
    head = ["steps", *FIGURES.values(), "lipschitz", "diversity"]
    lines = [
        [
            n,
            *(f"{f[name]:.4g}" if name in f else "-" for name in FIGURES),
            *(f"{probes[f'{kind}_{n}']:.3g}" for kind in ("lipschitz", "diversity")),
        ]
        for n, f in sorted(figures.items(), key=lambda one: int(one[0]))
    ]
    return f"## The teacher\n\n{markdown(head, lines)}"


def _table(rows: Sequence[tuple[Variant, Measured]]) -> str:
    """Tables of every figure of quality at every step count, two figures each, and of ratios of pairs of one seed."""
    tables = [_figures(rows, names) for names in (("frechet", "frechet_teacher"), ("kernel", "lpips_teacher"))]
    return "\n\n".join([*tables, PAIRS, _pairs(rows, ("frechet", "lpips_teacher"))])


def _figures(rows: Sequence[tuple[Variant, Measured]], names: Sequence[str]) -> str:
    head = ["", *(f"{SHORT[name]} {n}" for name in names for n in STEPS), "calls", "calls in training", "seeds"]
    lines = []
    for variant, found in rows:
        of_steps = [one["student"] for one in found.values()]
        cells = [spread([figures[n][name] for figures in of_steps if n in figures]) for name in names for n in STEPS]
        calls = next((f"{one['teacher_calls']:g}" for one in found.values()), "-")
        asked = next((f"{one.get('teacher_calls_in_training', 0):.3g}" for one in found.values()), "-")
        lines.append([variant.label, *cells, calls, asked, str(len(found))])
    return markdown(head, lines)


def _pairs(rows: Sequence[tuple[Variant, Measured]], names: Sequence[str]) -> str:
    """A table of every row's figures, divided by those of the first row with the same seed."""
    (first, base), *others = rows
    head = [f"over {first.label}", *(f"{SHORT[name]} {n}" for name in names for n in STEPS)]
    lines = []
    for variant, found in others:
        pairs = [(found[seed]["student"], base[seed]["student"]) for seed in found if seed in base]
        cells = [
            spread([one[n][name] / other[n][name] for one, other in pairs if n in one and _positive(other, n, name)])
            for name in names
            for n in STEPS
        ]
        lines.append([variant.label, *cells])
    return markdown(head, lines)


def _positive(figures: Mapping[str, Any], n: str, name: str) -> bool:
    """Whether a figure at a number of steps is there and can be divided by: above its floor a distance may not be."""
    return n in figures and figures[n][name] > 0


def _probes(rows: Sequence[tuple[Variant, Measured]], teacher: Mapping[str, Any]) -> str:
    """A table of how far outputs move with their starts, how diverse they are, by step count, and the error of x_0."""
    names = [f"{kind}_{n}" for kind in ("lipschitz", "diversity") for n in STEPS]
    own = [f"{teacher['probes'][name]:.3g}" if name in teacher["probes"] else "-" for name in names]
    lines = [["the teacher", *own, f"{statistics.fmean(teacher['overlap']):.3g}"]]
    lines += [
        [
            variant.label,
            *(spread([p[name] for p in probes if name in p]) for name in names),
            spread([statistics.fmean(one["overlap"]) for one in found.values() if "overlap" in one]),
        ]
        for variant, found in rows
        for probes in [[one["probes"] for one in found.values() if "probes" in one]]
    ]
    head = ["", *(name.replace("_", " ") for name in names), "error of x_0"]
    return markdown(head, lines)


def _gradients(rows: Sequence[tuple[Variant, Measured]]) -> str:
    """A table of laws of times: how well each serves the gradient, its cost, and when it is where uniform times end."""
    uniform = next((found for variant, found in rows if _times(variant) == UniformTimes()), {})
    head = ["", "gradient", "best of time", "quotient", "loss variance", "steps", "time", "seconds", "cost of a step"]
    return markdown(head, [_gradient_row(variant, found, uniform) for variant, found in rows])


def _verdicts(rows: Sequence[tuple[Variant, Measured]]) -> str:
    """Lines that say which learned laws of times keep the limits WITHIN and COST, by their means over seeds."""
    lines = []
    for variant, found in rows:
        law = [one["gradients"] for one in found.values() if "gradients" in one]
        if not law or not isinstance(_times(variant), LearnedTimes):
            continue
        quotient, cost = (
            statistics.fmean(v) for v in zip(*((m["ratio"] / m["oracle"], _law(m)) for m in law), strict=True)
        )
        lines.append(
            f"- {variant.label}: {quotient:.3g} of the best law's second moment ({WITHIN:g} at most: "
            f"{_met(quotient <= WITHIN)}), {cost:.2%} of a step ({COST:.0%} at most: {_met(cost <= COST)})."
        )
    return "\n".join(lines)


def _laws(rows: Sequence[tuple[Variant, Measured]]) -> Figure:
    """A figure with the densities of the learned laws over uniform times, means over seeds and instances, and the best
    law of time alone for the student that was trained with uniform times.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for variant, found in rows:
        times = _times(variant)
        law = [one["gradients"] for one in found.values() if "gradients" in one]
        learned = isinstance(times, LearnedTimes) and times.objective == UniformTimes()
        if law and (learned or times == UniformTimes()):
            curve = [
                statistics.fmean(v)
                for v in zip(*(m["density" if learned else "best_density"] for m in law), strict=True)
            ]
            label = variant.label if learned else "the best law of time alone"
            axes.plot(midpoints(len(curve)).tolist(), curve, label=label, linestyle="-" if learned else "--")
    axes.set(xlabel="t", ylabel="density")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def _met(held: bool) -> str:
    return "met" if held else "missed"


def _times(variant: Variant) -> object:
    return variant.changes.get("method.times")


def _gradient_row(variant: Variant, found: Measured, uniform: Measured) -> list[str]:
    law = [one["gradients"] for one in found.values() if "gradients" in one]
    same = getattr(_times(variant), "objective", None) == UniformTimes()
    pairs = [(found[seed], uniform[seed]) for seed in found if same and seed in uniform]
    reached = [(step, one, other) for one, other in pairs if (step := reach(one, other)) is not None]
    return [
        variant.label,
        spread([m["ratio"] for m in law]),
        spread([m["oracle"] for m in law]),
        spread([m["ratio"] / m["oracle"] for m in law]),
        spread([_late(one["loss_variance"]) / _late(other["loss_variance"]) for one, other in pairs]),
        f"{spread([step for step, _, _ in reached])} ({len(reached)} of {len(pairs)})" if pairs else "-",
        spread([step / other["steps"] * _cost(one) / _cost(other) for step, one, other in reached]),
        spread([step * statistics.fmean(one["step_s"]) for step, one, _ in reached]),
        f"{spread([100 * (_cost(one) - 1) for one in found.values() if 'gradients' in one])} %" if law else "-",
    ]


def _cost(one: Mapping[str, Any]) -> float:
    """The time of a step with its law of times over that of one without, both timed in one process."""
    return 1 + _law(one["gradients"]) if "gradients" in one else 1.0


def _law(measured: Mapping[str, Any]) -> float:
    """The time of the law of times as a share of that of the student's forward and backward."""
    return float(measured["law_s"] / measured["student_s"])


def reach(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """First step at which a run's loss, a mean over reports, is down to another run's final one; None where never."""
    last, losses = _late(other["loss"]), one["loss"]
    every = one["steps"] / len(losses)
    means = ((i + 1, statistics.fmean(losses[max(0, i + 1 - SMOOTHED) : i + 1])) for i in range(len(losses)))
    return next((i * every for i, mean in means if i >= SMOOTHED and mean <= last), None)


def _late(values: Sequence[float]) -> float:
    return statistics.fmean(values[-SMOOTHED:])


def _curve(question: Question, rows: Sequence[tuple[Variant, Measured]]) -> Figure:
    """A figure of the Frechet distance against x, a line per step count, with the spread over seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for steps in STEPS:
        points = [(v.x, [one["student"][steps]["frechet"] for one in found.values()]) for v, found in rows if found]
        xs = [float(x) for x, _ in points if x is not None]
        ys = [statistics.fmean(values) for _, values in points]
        errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(xs, ys, yerr=errors, marker="o", capsize=3, label=f"{steps} step{'s' * (steps != '1')}")
    axes.set(xlabel=question.title, ylabel="Frechet distance above its floor")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
