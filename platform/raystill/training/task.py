"""One training run from its settings to its averaged weights, on whichever engine and stream it is given."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol, runtime_checkable

import torch
from PIL.Image import Image
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.data.store import Store, removal
from raystill.engine.protocol import Engine, Optimizer
from raystill.engine.replicated import ReplicatedEngine
from raystill.methods.method import Batch, Given, Method
from raystill.models.averaging import Average, Follower
from raystill.training.loop import Learner, Observers, Training, train

Picture = Callable[[Mapping[str, Average], int], Image]  # (present averages by role, step) -> what is logged


@dataclass(slots=True)
class Assembly:
    """The method, networks and pictures that a task builds on a worker's device."""

    method: Method
    modules: dict[str, nn.Module]  # role -> the module that an engine wraps
    frozen: dict[str, nn.Module] = field(default_factory=dict)
    # role -> optimizer, for roles that do not have the task's
    optimizers: dict[str, Optimizer] = field(default_factory=dict)
    followers: dict[str, Follower] = field(default_factory=dict)
    small: frozenset[str] = frozenset()  # roles whose modules are whole on every rank and wait for no device
    sharing: frozenset[str] = frozenset()  # roles that are trained beside the first one on the same frozen weights
    given: Given | None = None  # facts of the teacher, in a distillation
    pictures: dict[str, Picture] = field(default_factory=dict)  # name for the recorder -> picture; rank 0 draws


@runtime_checkable  # so that tests can check annotations
class Task(Protocol):
    """Settings of one training run; picklable, so that it can be sent to workers."""

    @property
    def name(self) -> str:
        """The name of what is trained, one word."""

    @property
    def training(self) -> Training:
        """Length, batches and reports of the training."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of the task's roles, except those for which the assembly has another."""

    def build(self, device: torch.device) -> Assembly:
        """Build method and networks; every rank builds the same ones."""


@runtime_checkable  # so that tests can check annotations
class Recorder(Protocol):
    """The receiver of the metrics and pictures that rank 0 reports."""

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Take metrics of a step."""

    def picture(self, name: str, picture: Image, step: int) -> None:
        """Take a picture of a step."""


@dataclass(slots=True)
class Place:
    """What surrounds a task on one rank: its device, engines, batches, checkpoints and recorder."""

    checkpoints: Store
    engine: Callable[[nn.Module, Optimizer], Engine]
    # first step -> for each step from it on, a batch for each of the rank's lanes
    batches: Callable[[int], Iterator[Sequence[Batch]]]
    recorder: Recorder | None = None  # on rank 0 only
    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_step: Callable[[int], None] = lambda _step: None  # called after every step
    until: int | None = None  # step at which to save and end for now; None is the training's last step
    stop: Callable[[], bool] = lambda: False  # whether to save and end, asked where metrics are reported; collective
    total: Callable[[Tensor], Tensor] = lambda values: values  # sums a tensor over ranks; collective


def run_task(task: Task, place: Place) -> None:
    """Train a task from its newest checkpoint, or from the start, to its end, and write the averages to the checkpoint
    store under `final_key`; a task that is asked to stop writes a checkpoint and ends.
    """
    torch.manual_seed(task.training.seed)
    built = task.build(place.device)
    # Several of DeepSpeed's engines may not share weights at every stage.
    replicated = built.sharing if place.world_size > 1 else frozenset[str]()
    learners = {
        role: _learner(
            module, built.optimizers.get(role, task.optimizer), task, place, small=role in built.small | replicated
        )
        for role, module in built.modules.items()
    }
    start = _restore(learners, built.followers, place)
    if place.stop():
        return
    observers = Observers(
        step=place.on_step,
        metrics=lambda step, values: _report(place, step, values),
        checkpoint=lambda step: _save(learners, built.followers, place, step, last=step == task.training.steps),
        picture=lambda step: _draw(built, learners, place, step),
        stop=place.stop,
        total=place.total,
    )
    frozen = {role: network.to(place.device).eval() for role, network in built.frozen.items()}
    batches = place.batches(start)
    train(
        built.method, learners, frozen, batches, task.training, observers,
        rank=place.rank, world_size=place.world_size, start=start, until=place.until, followers=built.followers,
    )  # fmt: skip


def final_key(steps: int) -> str:
    """Key of the averages of a task of so many steps after its end; a task of more steps may go on from them."""
    return f"final-{steps:07d}.safetensors"


def averages_after(checkpoints: Store, steps: int) -> str | None:
    """Key of the averages after so many steps, of a task that ended or was stopped there; None where there are none."""
    if checkpoints.exists(final_key(steps)):
        return final_key(steps)
    return newest_averages(checkpoints) if steps == last_step(checkpoints) else None


def final_averages(checkpoints: Store, steps: int) -> dict[str, dict[str, Tensor]] | None:
    """Averages after so many steps, by role and tensor name; None where the task has not come there."""
    key = averages_after(checkpoints, steps)
    return None if key is None else read_averages(checkpoints, key)


def read_averages(checkpoints: Store, key: str) -> dict[str, dict[str, Tensor]]:
    """Averages under a key of the checkpoints, by role and tensor name; UserError where they are damaged."""
    found = checkpoints.read(key)
    with _whole(checkpoints, key):
        return _by_role(load(found))


def newest_averages(checkpoints: Store) -> str:
    """Key of the averages of the newest checkpoint, which the next one replaces."""
    return f"step-{last_step(checkpoints):07d}/averages.safetensors"


def last_step(checkpoints: Store) -> int:
    """Step of the newest checkpoint; 0 where there is none. UserError where the pointer to it is damaged."""
    if not checkpoints.exists("latest.json"):
        return 0
    pointer = checkpoints.read("latest.json")
    with _whole(checkpoints, "latest.json"):
        return int(json.loads(pointer)["step"])


def _learner(module: nn.Module, optimizer: Optimizer, task: Task, place: Place, *, small: bool) -> Learner:
    engine: Engine
    if small:
        engine = ReplicatedEngine(module, optimizer, place.device, world_size=place.world_size)
    else:
        engine = place.engine(module, optimizer)
    with engine.trainable() as tensors:
        average = Average(tensors, task.training.average_decay)
    return Learner(engine, optimizer, average)


def _report(place: Place, step: int, values: dict[str, float]) -> None:
    if place.recorder is not None:
        place.recorder.metrics(step, values)


def _draw(built: Assembly, learners: Mapping[str, Learner], place: Place, step: int) -> None:
    if place.recorder is not None:
        averages = {role: learner.average for role, learner in learners.items()}
        for name, picture in built.pictures.items():
            place.recorder.picture(name, picture(averages, step), step)


def _save(
    learners: Mapping[str, Learner], followers: Mapping[str, Follower], place: Place, step: int, *, last: bool
) -> None:
    """Write every role's state, then the pointer to it: a run that stops between the two resumes from the checkpoint
    before.
    """
    with TemporaryDirectory() as scratch:
        for role, learner in learners.items():
            learner.engine.save(Path(scratch) / role)  # collective
        if place.rank == 0:
            for file in sorted(p for p in Path(scratch).rglob("*") if p.is_file()):
                place.checkpoints.write(f"step-{step:07d}/{file.relative_to(scratch)}", file.read_bytes())
    if place.rank:
        return
    kept = {role: learner.average.values for role, learner in learners.items()}
    kept |= {role: follower.tensors for role, follower in followers.items()}
    averages = {f"{role}/{n}": v.cpu().contiguous() for role, tensors in kept.items() for n, v in tensors.items()}
    place.checkpoints.write(f"step-{step:07d}/averages.safetensors", save(averages))
    before = last_step(place.checkpoints)
    if last:  # before the pointer: a run that resumes at its end has no step left in which to write it
        place.checkpoints.write(final_key(step), save(averages))
    place.checkpoints.write("latest.json", json.dumps({"step": step}).encode())
    if before not in (0, step):
        for entry in place.checkpoints.list(f"step-{before:07d}/"):
            place.checkpoints.delete(entry.key)


def _restore(learners: Mapping[str, Learner], followers: Mapping[str, Follower], place: Place) -> int:
    """Load the newest checkpoint into every role and follower, on every rank; returns the step to go on from. UserError
    where it is damaged.
    """
    step = last_step(place.checkpoints)
    if step == 0:
        return 0
    prefix = f"step-{step:07d}"
    with TemporaryDirectory() as scratch:
        for entry in place.checkpoints.list(f"{prefix}/"):
            file = Path(scratch) / entry.key
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(place.checkpoints.read(entry.key))
        for role, learner in learners.items():
            with _whole(place.checkpoints, f"{prefix}/{role}", scratch):
                learner.engine.load(Path(scratch) / prefix / role)
        with _whole(place.checkpoints, f"{prefix}/averages.safetensors", scratch):
            averages = _by_role(load_file(Path(scratch) / prefix / "averages.safetensors"))
    for role, tensors in averages.items():
        if role in followers:
            followers[role].restore(tensors)
        else:
            learners[role].average.values = {n: v.to(place.device) for n, v in tensors.items()}
    return step


@contextmanager
def _whole(checkpoints: Store, key: str, scratch: str = "") -> Iterator[None]:
    """Raise UserError, naming file and command to type, where a checkpoint read from the store, or from a copy of it
    in `scratch`, is damaged or incomplete.
    """
    try:
        yield
    except (SafetensorError, FileNotFoundError, ValueError, KeyError, TypeError) as error:
        said = f"{type(error).__name__}: {error}".replace(scratch or checkpoints.uri, checkpoints.uri)
        raise UserError(
            f"{checkpoints.uri}/{key}: the checkpoint is damaged or incomplete ({said}). Delete it, and the same "
            f"command begins the training anew: {removal(checkpoints.uri)}"
        ) from error


def _by_role(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    roles: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        role, rest = name.split("/", 1)
        roles.setdefault(role, {})[rest] = tensor
    return roles
