"""Where trainings keep checkpoints: found by what they depend on, so that a training goes on where one stopped."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from raystill.config.digest import digest
from raystill.config.errors import UserError
from raystill.config.fingerprint import identity
from raystill.data.derive import Index, Source, place
from raystill.data.store import Store
from raystill.engine.learning_rate import depends_on_total
from raystill.launch.launcher import Launcher
from raystill.launch.stopping import MakeRecorder
from raystill.run.adoption import adopted_checkpoints, followed
from raystill.training.task import Task, averages_after, last_step

log = logging.getLogger(__name__)
STAGE = "checkpoints"
IDENTITY = "identity.json"  # file in a folder of checkpoints: what they depend on
RUNS = "runs"  # folder in it: a file for each run that has trained there, with the run's name
MOST = 200  # folders, at most, that are looked through for trainings of another length
STEPS = "training.steps"


def open_ended(task: Task) -> tuple[str, ...]:
    """Paths of settings on which a task's first steps do not depend, so that a task with more of them goes on from one
    with less: its steps, where its learning rate does not depend on their number.
    """
    return () if depends_on_total(task.optimizer) else (STEPS,)


def checkpoints_at(work: Store, task: Task, data: Store, **inputs: Any) -> Store:
    """The checkpoint store of a task's training on derived shards; `inputs` is what it depends on beside them."""
    return _folder(work, _located(work, task, _depends_on(task, data, inputs)))


def train_at(
    work: Store,
    task: Task,
    data: Store,
    index: Index,
    launcher: Launcher,
    recorder: MakeRecorder | None,
    *,
    name: str = "",
    until: int | None = None,
    **inputs: Any,
) -> Store:
    """Train a task to its end, or until a step, from where an earlier run stopped; return the store of its checkpoints,
    in which the name of the run is noted. Logs where a training of another length is there from which this one cannot
    go on.
    """
    rest = _depends_on(task, data, inputs)
    known = _located(work, task, rest)
    checkpoints = _folder(work, known)
    if last_step(checkpoints) == 0:
        for other in _of_other_lengths(work, rest):
            _say(other, task)
        checkpoints = adopted_checkpoints(work, checkpoints, Source.of(data), task)
        checkpoints.write(IDENTITY, json.dumps({"task": task.name, "identity": known}, indent=1).encode())
    if name:
        checkpoints.write(f"{RUNS}/{digest(name)}", name.encode())
    launcher.train(task, data, index, checkpoints, recorder, until=until)
    return checkpoints


def _depends_on(task: Task, data: Store, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The identity of a training without its length; which rank computes which lane is no part of it."""
    return Source.of(data).identity(task=identity(task, (STEPS,)), **inputs)


def _located(work: Store, task: Task, rest: Mapping[str, Any]) -> dict[str, Any]:
    """The identity at which a training is stored: its length is part of it where the first steps depend on it, or where
    a longer training has gone past this one already.
    """
    return dict(rest) if _goes_on(work, task, rest) else {**rest, "steps": task.training.steps}


def _goes_on(work: Store, task: Task, rest: Mapping[str, Any]) -> bool:
    """Whether a training's checkpoints are shared by those of other lengths: its first steps do not depend on its
    length, and no longer training has gone past its end without keeping the averages of that step.
    """
    steps, shared = task.training.steps, _folder(work, rest)
    return bool(open_ended(task)) and (last_step(shared) <= steps or averages_after(shared, steps) is not None)


def left_out(work: Store, task: Task, data: Store, **inputs: Any) -> tuple[str, ...]:
    """Paths of settings in which trainings that share this one's checkpoints may differ from it."""
    return open_ended(task) if _goes_on(work, task, _depends_on(task, data, inputs)) else ()


def _folder(work: Store, known: Mapping[str, Any]) -> Store:
    return followed(work, place(work, STAGE, known))


def _of_other_lengths(work: Store, rest: Mapping[str, Any]) -> list[tuple[Store, Any]]:
    """The checkpoint stores of trainings that differ from this one in their length only, each with that length."""
    stage, found = work.join(STAGE), []
    for name in stage.folders()[:MOST]:
        folder = stage.join(name)
        if folder.exists(IDENTITY):
            known = json.loads(folder.read(IDENTITY))["identity"]
            if {key: value for key, value in known.items() if key != "steps"} == rest and _reached(folder):
                found.append((folder, known.get("steps")))
    return found


def _reached(folder: Store) -> int:
    """The last step of another training; 0 where its checkpoints are damaged, which does not concern this one."""
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
