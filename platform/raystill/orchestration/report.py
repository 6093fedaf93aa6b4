"""The report of a study: a table per question with mean and standard deviation over seeds, and curves."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from matplotlib.figure import Figure

from raystill.flow.times import UniformTimes
from raystill.orchestration.study import Question, Study, Variant, measure_all

Measured = list[Mapping[str, Any]]  # one per seed that has been measured and did not fail
STEPS = ("1", "2", "4", "8")
SMOOTHED = 5  # reports of a training, whose mean is compared
PROBES = """How far an output moves, relative to its start, where that moves a little (of latents, in Euclidean norms),
and the mean distance of features between pictures of one caption from independent starts; the teacher's at its own last
step count."""
GRADIENTS = """For each law of times, with the student that was trained with it: the second moment of the weighted
gradient over that under the objective's own law; the same of the best law that knows the time alone; their quotient;
the variance of the weighted loss over that with uniform times; steps and seconds of training to the final loss of
uniform times; and what drawing and learning take of a student's forward and backward."""
FIGURES = {"frechet": "Frechet distance", "kernel": "kernel distance", "lpips_teacher": "LPIPS to the teacher's sample"}


def launch_study(study: Study, *, local: bool = False) -> str:
    """Measure what is missing and write the report; returns it."""
    text = report(study, measure_all(study, local=local))
    path = study.results.with_suffix(".md")
    path.write_text(text)
    return f"{text}\n{path}"


def report(study: Study, results: Mapping[str, Any]) -> str:
    """The whole report as Markdown; draws its pictures beside the results."""
    parts = [_head(study, results), _teacher(results["teacher"])]
    for number, question in enumerate(study.questions, 1):
        rows = [(variant, measured(study, variant, results)) for variant in question.variants]
        parts += [f"## {number}. {question.title}", question.text, _table(rows)]
        if question.probes:
            parts += [PROBES, _probes(rows, results["teacher"]["probes"])]
        if question.gradients:
            parts += [GRADIENTS, _gradients(rows)]
        if all(variant.x is not None for variant in question.variants):
            picture = study.results.with_name(f"{study.name}-{number}.png")
            _curve(question, rows).savefig(picture, dpi=110)
            parts.append(f"![{question.title}]({picture.name})")
        parts.append(question.conclusion)
    return "\n\n".join(filter(None, parts)) + "\n"


def measured(study: Study, variant: Variant, results: Mapping[str, Any]) -> Measured:
    """What was measured of a variant, one entry per seed."""
    found = [results["runs"].get(study.run_of(variant, seed)[0]) for seed in study.seeds]
    return [one for one in found if one is not None and "failed" not in one]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds; a dash where nothing was measured."""
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.4g}" if len(values) == 1 else f"{mean:.4g} ± {statistics.stdev(values):.2g}"


def _head(study: Study, results: Mapping[str, Any]) -> str:
    training, run = study.base.training, study.base
    samples = training.steps * training.batch_size * run.cluster.workers
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray", "deepspeed"))
    planned = study.runs()
    done = sum(key in results["runs"] for key in planned)
    lines = [
        f"{done} of {len(planned)} runs are measured; seeds {', '.join(map(str, study.seeds))}.",
        f"{training.steps} steps of {training.batch_size} samples on each of {run.cluster.workers} workers ({samples}",
        f"samples); {run.targets.estimator.calls} teacher calls for each target, stored once.",
        f"Teacher `{run.teacher}`; {run.evaluation.shards} shards of held-out captions, {run.evaluation.features}.",
        f"Means ± standard deviations over seeds; every measurement is in `{study.results.name}`.",
        f"Python {platform.python_version()}, {versions}.",
    ]
    return "\n\n".join(filter(None, [f"# {study.name}", study.text, "\n".join(lines)]))


def _teacher(teacher: Mapping[str, Any]) -> str:
    figures, probes = teacher["figures"], teacher["probes"]
    head = ["steps", *FIGURES.values()]
    lines = [[n, *(f"{f[name]:.4g}" if name in f else "-" for name in FIGURES)] for n, f in figures.items()]
    shown = ", ".join(f"{name.replace('_', ' at ')} steps {value:.3g}" for name, value in probes.items())
    return f"## The teacher\n\n{markdown(head, lines)}\n\n{shown}."


def _table(rows: Sequence[tuple[Variant, Measured]]) -> str:
    head = [
        "", *(f"Frechet {n}" for n in STEPS), "kernel 1", "kernel 4", "LPIPS 1", "LPIPS 4", "Lipschitz 1",
        "diversity 1", "mse of x_0", "s",
    ]  # fmt: skip
    return markdown(head, [_row(variant.label, found) for variant, found in rows])


def _row(label: str, found: Measured) -> list[str]:
    def figure(name: str, steps: str) -> str:
        return spread([one["student"][steps][name] for one in found])

    def probe(name: str) -> str:
        return spread([one["probes"][name] for one in found])

    return [
        label, *(figure("frechet", n) for n in STEPS), figure("kernel", "1"), figure("kernel", "4"),
        figure("lpips_teacher", "1"), figure("lpips_teacher", "4"), probe("lipschitz_1"), probe("diversity_1"),
        spread([_late(one["data_mse"]) for one in found]),
        spread([one["train_s"] for one in found]),
    ]  # fmt: skip


def _probes(rows: Sequence[tuple[Variant, Measured]], teacher: Mapping[str, float]) -> str:
    """How far outputs move with their starts, and how diverse they are, at each step count; the teacher first."""
    names = [f"{kind}_{n}" for kind in ("lipschitz", "diversity") for n in STEPS]
    of_teacher = {name.rpartition("_")[0]: value for name, value in teacher.items()}  # at its one step count
    first = ["teacher", *(f"{of_teacher[kind]:.4g}" for kind in ("lipschitz", "diversity") for _ in STEPS)]
    lines = [[v.label, *(spread([one["probes"][name] for one in found]) for name in names)] for v, found in rows]
    return markdown(["", *(name.replace("_", " ") for name in names)], [first, *lines])


def _gradients(rows: Sequence[tuple[Variant, Measured]]) -> str:
    """How well each law of times serves the gradient, what it costs, and how soon it is where uniform times end."""
    uniform = next((found for variant, found in rows if _times(variant) == UniformTimes()), [])
    head = ["", "gradient", "best of time", "quotient", "loss variance", "steps", "s", "cost of a step"]
    return markdown(head, [_gradient_row(variant, found, uniform) for variant, found in rows])


def _times(variant: Variant) -> object:
    return variant.changes.get("method.times")


def _gradient_row(variant: Variant, found: Measured, uniform: Measured) -> list[str]:
    measured = [one["gradients"] for one in found if "gradients" in one]
    same = getattr(_times(variant), "objective", None) == UniformTimes()
    pairs = list(zip(found, uniform, strict=False)) if same else []
    reached = [(step, step * statistics.fmean(one["step_s"])) for one, u in pairs if (step := reach(one, u))]
    return [
        variant.label,
        spread([m["ratio"] for m in measured]),
        spread([m["oracle"] for m in measured]),
        spread([m["ratio"] / m["oracle"] for m in measured]),
        spread([_late(one["loss_variance"]) / _late(u["loss_variance"]) for one, u in pairs]),
        spread([step for step, _ in reached]),
        spread([s for _, s in reached]),
        spread([100 * m["law_s"] / m["student_s"] for m in measured]) + " %",
    ]


def reach(one: Mapping[str, Any], other: Mapping[str, Any]) -> float | None:
    """First step at which the loss, a mean over reports, is down to the other's final one; None where never."""
    last, losses = _late(other["loss"]), one["loss"]
    every = one["steps"] / len(losses)
    means = ((i + 1, statistics.fmean(losses[max(0, i + 1 - SMOOTHED) : i + 1])) for i in range(len(losses)))
    return next((i * every for i, mean in means if i >= SMOOTHED and mean <= last), None)


def _late(values: Sequence[float]) -> float:
    return statistics.fmean(values[-SMOOTHED:])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _curve(question: Question, rows: Sequence[tuple[Variant, Measured]]) -> Figure:
    """Frechet distance against x, a line per step count, with the spread over seeds."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for steps in STEPS:
        points = [(v.x, [one["student"][steps]["frechet"] for one in found]) for v, found in rows if found]
        xs = [float(x) for x, _ in points if x is not None]
        ys = [statistics.fmean(values) for _, values in points]
        errors = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
        axes.errorbar(xs, ys, yerr=errors, marker="o", capsize=3, label=f"{steps} step{'s' * (steps != '1')}")
    axes.set(xlabel=question.title, ylabel="Frechet distance")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure
