"""Figures and pictures of a teacher and its student at every step count."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL.Image import Image

from raystill.config.digest import canonical
from raystill.config.fingerprint import fingerprint
from raystill.data.derive import Index, Source, Stage
from raystill.data.records import Row, unpack_row
from raystill.data.shards import unpack
from raystill.data.store import Store, open_store
from raystill.evaluation.distances import frechet
from raystill.evaluation.metrics import METRICS, Pictures, figures
from raystill.evaluation.pictures import grid
from raystill.launch.launcher import Launcher
from raystill.models.hub import teacher_at
from raystill.models.revision import revision
from raystill.run.samples import Sampler, StudentSamples, TeacherSamples
from raystill.run.settings import Run

FOR_CAPTION, MOST = 2, 16  # rows of the picture: at most so many of one caption, and in all
Figures = dict[str, dict[str, float]]  # step count -> name -> value


@dataclass(slots=True)
class EvaluationResult:
    """The outcome of one evaluation."""

    digest: str  # fingerprint of everything that the figures depend on except the student
    features: str
    teacher: Figures
    student: Figures
    picture: Image
    left_out: str  # rejected samples with reasons, as lines of text; empty where there are none
    captions: tuple[str, ...] = ()  # of the picture's rows


def evaluate(run: Run, launcher: Launcher, drawn: Sampler) -> EvaluationResult:
    """Draw with teacher and student from the same captions and starts, and measure; what an earlier run drew is found,
    not drawn again.
    """
    by_teacher, teacher = draw_teacher(run, launcher)
    rows = read_rows(by_teacher, teacher), draw_student(run, launcher, drawn)
    return _measure(run, fingerprint(teacher.identity), *rows, teacher.left_out)


def draw_student(run: Run, launcher: Launcher, drawn: Sampler) -> list[Row]:
    """The student's pictures of the evaluation's captions, with features and LPIPS to the teacher's; drawn or found."""
    settings, source = run.evaluation, Source.of(draw_teacher(run, launcher)[0])
    make = partial(StudentSamples, drawn, settings, launcher.stage_device)
    stage = Stage.at(
        open_store(run.work), "student-samples", source, make, run.reading.max_bad_fraction,
        stage="student samples", steps=settings.student_steps, **drawn.identity(),
    )  # fmt: skip
    return read_rows(stage.store, launcher.derive(stage))


def draw_teacher(run: Run, launcher: Launcher) -> tuple[Store, Index]:
    """The teacher's pictures of the evaluation's captions, with features of the real ones; drawn or found."""
    settings, source = run.evaluation, Source.of(open_store(run.shards), run.evaluation.shards)
    apart = replace(settings, student_steps=())  # the teacher's pictures do not depend on them
    make = partial(TeacherSamples, run.teacher, settings, run.reading, launcher.stage_device)
    stage = Stage.at(
        open_store(run.work), "teacher-samples", source, make, run.reading.max_bad_fraction,
        stage="teacher samples", teacher=revision(teacher_at(run.teacher)), reading=run.reading, settings=apart,
    )  # fmt: skip
    return stage.store, launcher.derive(stage)


def read_rows(store: Store, index: Index) -> list[Row]:
    """All rows of an evaluation's stage, sorted by key."""
    rows = [unpack_row(s) for shard in index.shards if shard.count for s in unpack(store.read(shard.key), shard.key)]
    return sorted(rows, key=lambda row: str(row["key"]))


def _measure(run: Run, identity: str, teacher: list[Row], student: list[Row], left_out: str) -> EvaluationResult:
    settings = run.evaluation
    real = _stack(teacher, "features_real")
    reference = _features(teacher, settings.reference_steps)
    of_teacher = {str(n): figures(_pictures(teacher, n, real, reference)) for n in settings.teacher_steps}
    of_student = {str(n): figures(_pictures(student, n, real, reference)) for n in settings.student_steps}
    shown = rows_of_picture(settings.captions, [str(row["caption"]) for row in teacher])
    return EvaluationResult(
        identity, settings.features, of_teacher, of_student, _picture(run, teacher, student, shown), left_out,
        captions=tuple(str(teacher[i]["caption"]) for i in shown),
    )  # fmt: skip


def _pictures(rows: list[Row], steps: int, real: torch.Tensor, reference: torch.Tensor) -> Pictures:
    """The pictures of one step count, as metrics take them."""
    lpips = _stack(rows, f"agreement_{steps}") if f"agreement_{steps}" in rows[0] else None
    return Pictures(
        features=_features(rows, steps), real=real, reference=reference, lpips=lpips,
        seconds=_stack(rows, f"seconds_{steps}"),
    )  # fmt: skip


def _features(rows: list[Row], steps: int) -> torch.Tensor:
    return _stack(rows, f"features_{steps}")


def _stack(rows: list[Row], name: str) -> torch.Tensor:
    return torch.from_numpy(np.stack([row[name] for row in rows]))


def rows_of_picture(wanted: Sequence[str], captions: Sequence[str]) -> list[int]:
    """Which samples of an evaluation are rows of its picture, by their captions: the first ones of each wanted caption,
    as many as leave room for all of them, or some of all samples; at most MOST.
    """
    each = max(1, min(FOR_CAPTION, MOST // max(1, len(wanted))))
    found = [i for one in wanted for i in [i for i, caption in enumerate(captions) if caption == one][:each]]
    return found[:MOST] or list(range(0, len(captions), max(1, len(captions) // 10)))[:10]


def _picture(run: Run, teacher: list[Row], student: list[Row], chosen: Sequence[int]) -> Image:
    """A grid of pictures: a row per sample, a column per step count of the teacher and of the student."""
    settings = run.evaluation
    columns = [(teacher, n, "teacher") for n in settings.teacher_steps] + [
        (student, n, "student") for n in settings.student_steps
    ]
    rows = [[source[i][f"image_{n}"] for source, n, _ in columns] for i in chosen]
    return grid(rows, [teacher[i]["caption"] for i in chosen], [f"{who} {n}" for _, n, who in columns])


def floor_of(run: Run, launcher: Launcher) -> float:
    """The floor of the Frechet distances: the distance between two sets of the teacher's own samples at its reference
    steps, from the evaluation's starts and from those of the next seed, of the same captions. It is the bias that a
    distance has at this number of pictures (arXiv:1706.08500), as two sets of one law show it.
    """
    evaluation = run.evaluation
    other = replace(run, evaluation=replace(evaluation, seed=evaluation.seed + 1))
    ours, theirs = (
        _features(read_rows(*draw_teacher(one, launcher)), evaluation.reference_steps) for one in (run, other)
    )
    return frechet(ours, theirs, allow_few=True)


def table(evaluated: EvaluationResult) -> str:
    """The figures as text: a line per network and step count."""
    widths = [int(metric.digits.partition(".")[0]) for metric in METRICS]
    heads = [f"{metric.heading:>{width}}" for metric, width in zip(METRICS, widths, strict=True)]
    head = " ".join([f"{'':8} {'steps':>5}", *heads])
    lines = [head, "-" * len(head)]
    for who, by_steps in (("teacher", evaluated.teacher), ("student", evaluated.student)):
        for steps, found in by_steps.items():
            cells = [
                f"{found[metric.name]:{metric.digits}}" if metric.name in found else " " * width
                for metric, width in zip(METRICS, widths, strict=True)
            ]
            lines.append(" ".join([f"{who:8} {steps:>5}", *cells]))
    return "\n".join(lines)


def spread(evaluated: list[EvaluationResult]) -> str:
    """Mean and relative range of the Frechet distance over evaluations of the same models with other starts."""
    lines = []
    for who in ("teacher", "student"):
        for steps in getattr(evaluated[0], who):
            values = [getattr(e, who)[steps]["frechet"] for e in evaluated]
            mean = float(np.mean(values))
            share = (max(values) - min(values)) / mean
            shown = ", ".join(f"{v:.2f}" for v in values)
            lines.append(f"{who:8} {steps:>3} steps: {shown}; mean {mean:.2f}, range {share:.1%}")
    return "\n".join(lines)


def as_card(evaluated: EvaluationResult) -> dict[str, Any]:
    """The part of an adapter's card that an evaluation fills."""
    frechet_by_steps = {steps: f["frechet"] for steps, f in evaluated.student.items()}
    every = canonical({"teacher": evaluated.teacher, "student": evaluated.student})
    return {"digest": evaluated.digest, "features": evaluated.features, "frechet": frechet_by_steps, **every}
