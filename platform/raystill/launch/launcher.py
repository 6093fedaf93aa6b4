"""Where stages and trainings run: in this process, or on a Ray cluster (`launch.cluster`)."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Protocol, TypeVar, runtime_checkable

import torch
from tqdm import tqdm

from raystill.config.home import DIRECTORY
from raystill.data.batches import local_batches
from raystill.data.derive import Index, Stage, derive
from raystill.data.plan import Plan
from raystill.data.store import Store
from raystill.engine.local import LocalEngine
from raystill.engine.precision import advice
from raystill.launch.stopping import MakeRecorder, asked_to_stop, recorded, saving
from raystill.launch.threads import choose_threads, same_threads
from raystill.training.profiling import profiled
from raystill.training.task import Place, Task, last_step, run_task

log = logging.getLogger(__name__)
Item = TypeVar("Item")
Result = TypeVar("Result")


@runtime_checkable  # so that tests can check annotations
class Launcher(Protocol):
    """What runs stages, trainings and independent pieces of work, here or on a cluster."""

    @property
    def stage_device(self) -> str:
        """Device of the networks that compute derived shards."""

    def derive(self, stage: Stage) -> Index:
        """Compute a stage's derived shards, or find them; return their index."""

    def train(
        self,
        task: Task,
        data: Store,
        index: Index,
        checkpoints: Store,
        recorder: MakeRecorder | None,
        *,
        until: int | None = None,
    ) -> None:
        """Train a task on derived shards to its end, or until a step; its averages lie in `checkpoints` afterwards.
        KeyboardInterrupt, after a checkpoint, where a signal stopped the training.
        """

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Run `work` on each item with the resources of a training worker, many at once where there is room; yield an
        item's number and result when it is done.
        """


@dataclass(slots=True)
class LocalLauncher:
    """The launcher that works in this process with plain torch, without Ray: a laptop, or a machine with one GPU."""

    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    def __post_init__(self) -> None:
        """Choose the number of threads."""
        if self.device.type == "cpu":
            choose_threads()

    @property
    def stage_device(self) -> str:
        """The device of this process."""
        return str(self.device)

    def derive(self, stage: Stage) -> Index:
        """Compute a stage's derived shards one after the other, or find them; return their index."""
        return derive(stage)

    def train(
        self,
        task: Task,
        data: Store,
        index: Index,
        checkpoints: Store,
        recorder: MakeRecorder | None,
        *,
        until: int | None = None,
    ) -> None:
        """Train a task in this process, from its newest checkpoint on."""
        training = task.training
        plan = Plan(shards=index.shards, seed=training.seed, lanes=training.lanes, lane_size=training.lane_size)
        start = last_step(checkpoints)
        if start >= (until or training.steps):
            return
        if line := advice(training.precision, self.device):
            log.warning("%s", line)
        with (
            saving(checkpoints),
            same_threads(checkpoints) if self.device.type == "cpu" else nullcontext(),
            recorded(recorder, checkpoints, until or training.steps) as opened,
            tqdm(total=training.steps, initial=start, desc=task.name, unit="step", smoothing=0.05) as bar,
            profiled(DIRECTORY / "profiles" / f"{task.name}-0", lambda step: bar.update(step - bar.n)) as stepped,
        ):
            place = Place(
                checkpoints=checkpoints,
                engine=lambda module, optimizer: LocalEngine(module, optimizer, self.device),
                batches=lambda step: local_batches(
                    data, plan, range(training.lanes), step, training.steps - step, self.device
                ),
                recorder=opened,
                device=self.device,
                on_step=stepped,
                stop=lambda: asked_to_stop(checkpoints),
                until=until,
            )
            run_task(task, place)

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Run `work` on the items in this process, one after the other."""
        for number, item in enumerate(items):
            yield number, work(item)
