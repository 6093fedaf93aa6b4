"""Every check of a run that needs no store and no cluster, in order, before anything starts."""

import json
import logging
import shlex
from collections.abc import Mapping
from math import lcm

from raystill.config.errors import UserError
from raystill.config.extras import need
from raystill.flow.schedules import Times
from raystill.methods.method import check_times
from raystill.models.counts import wrong_counts
from raystill.models.fitting import sign_of_distillation
from raystill.models.hub import teacher_at
from raystill.models.pipeline import TeacherFacts, teacher_facts
from raystill.models.sampling import NORMAL
from raystill.models.weights import Lora
from raystill.run.settings import Run
from raystill.training.lanes import advice, check_lanes

log = logging.getLogger(__name__)


def validate(run: Run, teacher: TeacherFacts | None = None, *, local: bool = False) -> None:
    """Refuse, with UserError, a run whose settings do not fit together or do not fit its teacher. `teacher` are
    the facts of its teacher, read where they are not given; a `local` run needs no workers.
    """
    run.check()
    if run.store == "embedded":
        need("tenacity", purpose="store=embedded", otherwise="your own store or folders: --set store=environment")
    teacher = teacher or teacher_facts(teacher_at(run.teacher))
    if sign := sign_of_distillation(teacher_at(run.teacher)):
        log.warning(
            "teacher %s looks as if it had been distilled already (%s): teach students by the pipeline that it was "
            "made from, whose ODE takes many steps", run.teacher, sign,
        )  # fmt: skip
    _advise(run, teacher)
    check_teacher(run, teacher)
    run.targets.estimator.check(teacher.schedule, teacher.kind)
    _check_reading(run, teacher)
    if not local:
        share_out(run.training.lanes, run.cluster.workers)


def _advise(run: Run, teacher: TeacherFacts) -> None:
    """Warn of settings that are those of another family of pipelines, which nothing refuses."""
    usual = isinstance(run.weights, Lora) and run.weights.targets == Lora().targets  # those of UNets
    asked = Lora().targets if usual else teacher.layers
    if left := [name for name in teacher.layers if not any(name == one or name.endswith(f".{one}") for one in asked)]:
        log.warning(
            "weights.targets leave out %s, which scripts for this family of pipelines give a LoRA: --set %s",
            ", ".join(left), shlex.quote(f"weights.targets={json.dumps(teacher.layers)}"),
        )  # fmt: skip
    if teacher.told_frames and run.targets.estimator.reads_picture and run.reading.crop == "none":
        log.warning(
            "pictures are laid whole on white, and the teacher is told that they are so by themselves, which students "
            "would learn; to cut squares out of them: --set reading.crop=random"
        )


def check_teacher(run: Run, teacher: TeacherFacts) -> None:
    """Refuse, with UserError, a teacher that a run's method cannot be used with, and step counts at which the sampler
    would ask the student at times that it is not trained at.
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
    """The settings to write instead: the nearest step counts, unless the method's default is a wrong one, or, for a
    student that is trained on a grid, the next number of intervals that all counts divide.
    """
    steps = run.evaluation.student_steps
    right = sorted({nearest[0] for nearest in wrong.values()} | (set(steps) - set(wrong)))
    ways = [f"--set 'evaluation.student_steps={right}'"] if run.method.default_steps not in wrong else []
    if trained is not None:
        whole = lcm(*steps)
        ways.append(f"--set method.intervals={-(-len(trained) // whole) * whole}")
    return " or ".join(ways)


def share_out(lanes: int, workers: int, prefix: str = "") -> None:
    """Refuse, with UserError, more workers than lanes; warn where some would be idle for a part of every step."""
    check_lanes(lanes, workers, prefix)
    if line := advice(lanes, workers):
        log.warning("%s", line)


def _check_reading(run: Run, teacher: TeacherFacts) -> None:
    """Refuse, with UserError, to compare a teacher's pictures with real ones of another size or number of channels."""
    size, channels = teacher.picture_shape
    if (run.reading.picture_size, run.reading.channels) != (size, channels):
        raise UserError(
            f"{run.teacher} draws pictures of {size} pixels and {channels} channels, and reading asks for "
            f"{run.reading.picture_size} and {run.reading.channels}: write --set reading.picture_size={size} "
            f"--set reading.channels={channels}"
        )
