"""Where a training keeps its state: found by what it depends on, so that it goes on where an earlier one stopped."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from raystill.config.errors import UserError
from raystill.config.fingerprint import identity
from raystill.data.derive import Index, Source, place
from raystill.data.store import Store
from raystill.engine.learning_rate import depends_on_total
from raystill.launch.launcher import Launcher, MakeRecorder
from raystill.run.adoption import adopted_checkpoints, followed
from raystill.training.task import Task, averages_after, last_step

log = logging.getLogger(__name__)
STAGE = "checkpoints"
IDENTITY = "identity.json"  # in a folder of checkpoints: what they depend on
MOST = 200  # folders that are looked through for a training of another length
STEPS = "training.steps"


def open_ended(task: Task) -> tuple[str, ...]:
    """Settings of a task that its first steps do not depend on, so that one that has more of them goes on."""
    return () if depends_on_total(task.optimizer) else (STEPS,)


def checkpoints_at(work: Store, task: Task, data: Store, **inputs: Any) -> Store:
    """Where a task's training on derived shards keeps its state; `inputs` is what it depends on beside them."""
    return _folder(work, _located(work, task, _depends_on(task, data, inputs)))


def train_at(
    work: Store,
    task: Task,
    data: Store,
    index: Index,
    launcher: Launcher,
    recorder: MakeRecorder | None,
    *,
    until: int | None = None,
    **inputs: Any,
) -> Store:
    """Train a task to its end, or until a step, from where an earlier run stopped; returns its checkpoints. Says so
    where a training of another length cannot be gone on with.
    """
    rest = _depends_on(task, data, inputs)
    known = _located(work, task, rest)
    checkpoints = _folder(work, known)
    if last_step(checkpoints) == 0:
        for other in _of_other_lengths(work, rest):
            _say(other, task)
        checkpoints = adopted_checkpoints(work, checkpoints, Source.of(data), task)
        checkpoints.write(IDENTITY, json.dumps({"task": task.name, "identity": known}, indent=1).encode())
    launcher.train(task, data, index, checkpoints, recorder, until=until)
    return checkpoints


def _depends_on(task: Task, data: Store, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a training depends on but its length; who computes its lanes does not matter."""
    return Source.of(data).identity(task=identity(task, (STEPS,)), **inputs)


def _located(work: Store, task: Task, rest: Mapping[str, Any]) -> dict[str, Any]:
    """What addresses a training: its length is part of it where the first steps depend on it, or where a longer one has
    gone past it already.
    """
    return dict(rest) if _goes_on(work, task, rest) else {**rest, "steps": task.training.steps}


def _goes_on(work: Store, task: Task, rest: Mapping[str, Any]) -> bool:
    """Whether a training of another length may lead to this one, and none has gone past it."""
    steps, shared = task.training.steps, _folder(work, rest)
    return bool(open_ended(task)) and (last_step(shared) <= steps or averages_after(shared, steps) is not None)


def left_out(work: Store, task: Task, data: Store, **inputs: Any) -> tuple[str, ...]:
    """Settings that do not tell a training from others that are in the same place."""
    return open_ended(task) if _goes_on(work, task, _depends_on(task, data, inputs)) else ()


def _folder(work: Store, known: Mapping[str, Any]) -> Store:
    return followed(work, place(work, STAGE, known))


def _of_other_lengths(work: Store, rest: Mapping[str, Any]) -> list[tuple[Store, Any]]:
    """Checkpoints, with their lengths, of trainings that differ in nothing else."""
    stage, found = work.join(STAGE), []
    for name in stage.folders()[:MOST]:
        folder = stage.join(name)
        if folder.exists(IDENTITY):
            known = json.loads(folder.read(IDENTITY))["identity"]
            if {key: value for key, value in known.items() if key != "steps"} == rest and _reached(folder):
                found.append((folder, known.get("steps")))
    return found


def _reached(folder: Store) -> int:
    """The last step of another training; 0 where its checkpoints are damaged, which is no matter of this one."""
    try:
        return last_step(folder)
    except UserError:
        return 0


def _say(other: tuple[Store, Any], task: Task) -> None:
    """Say why a training begins anew beside one that differs in its length only."""
    folder, steps = other
    reached = last_step(folder)
    if steps is None:
        log.info(
            "%s: the training of these settings at %s is past step %d already, so this one begins anew in a folder of "
            "its own", task.name, folder.uri, task.training.steps,
        )  # fmt: skip
        return
    log.info(
        "%s: there is a training of the same settings with training.steps=%d at %s, %s. Its %s schedule ends there, so "
        "this one of %d steps begins anew; one of a constant rate would have gone on: --set optimizer.decay=constant",
        task.name, steps, folder.uri, "finished" if reached == steps else f"stopped at step {reached}",
        task.optimizer.decay, task.training.steps,
    )  # fmt: skip
