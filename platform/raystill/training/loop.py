"""The training loop: batches through a method's losses into engines; knows neither Ray nor which method it runs.

A step is several lanes: forwards and backwards of `lane_size` samples, each with samples, noise and times of its own.
All of them see the parameters and learned laws of the step's start; optimizers, averages, followers and laws move once
a step. So the same run comes out of any number of ranks, and gradients are accumulated by giving a rank several lanes.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced
from raystill.engine.learning_rate import learning_rate
from raystill.engine.protocol import Engine, NonFiniteError, Optimizer
from raystill.methods.method import Batch, Loss, Method, Networks, generator
from raystill.models.averaging import Average, Follower
from raystill.training.lanes import Lane, share


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings of a training's length, batches and reports; a step has `lanes` times `lane_size` samples."""

    steps: int = introduced(1000)
    lanes: int = introduced(1)  # forward and backward passes of a step, shared out among the workers
    lane_size: int = introduced(32)  # samples of each lane
    seed: int = introduced(0)
    average_decay: float = introduced(0.999)  # decay of the exponential moving average of the trained tensors
    precision: str = introduced("float32")  # precision of activations: "float32" or "bfloat16" (autocast)
    # whether activations are computed anew in the backward pass: less memory, more time, the same numbers
    checkpointing: Knob[bool] = False
    log_every: Knob[int] = 10  # steps between two reports of metrics
    checkpoint_every: Knob[int] = 200  # steps between two checkpoints; the last step is always saved
    picture_every: Knob[int] = 200  # steps between two pictures; 0 draws none

    @property
    def step_size(self) -> int:
        """The number of samples in a step, over all lanes."""
        return self.lanes * self.lane_size


@dataclass(slots=True)
class Learner:
    """A role that is trained: its engine, its optimizer's settings and the average of its trained tensors."""

    engine: Engine
    optimizer: Optimizer
    average: Average
    updates: int = 0  # updates so far


def _nothing(_step: int) -> None:
    """Do nothing, where nobody observes."""


@dataclass(slots=True)
class Observers:
    """Callbacks of the training loop beside its updates; every rank calls each of them at the same steps."""

    step: Callable[[int], None] = _nothing  # after every step, without waiting for the device
    metrics: Callable[[int, dict[str, float]], None] = lambda _step, _values: None
    checkpoint: Callable[[int], None] = _nothing  # saves the state after so many steps
    picture: Callable[[int], None] = _nothing
    # whether to save and train no further: asked after metrics, the same answer on all ranks
    stop: Callable[[], bool] = lambda: False
    total: Callable[[Tensor], Tensor] = lambda values: values  # sums a tensor over ranks; collective


@dataclass(slots=True)
class Progress:
    """Sums of metrics and seconds since the last report; tensors stay on the device until the next one."""

    sums: dict[str, Tensor]
    wait_s: float = 0.0
    step_s: float = 0.0
    count: int = 0

    def add(self, name: str, value: Tensor, share: float) -> None:
        """Add a rank's share of a scalar's mean over ranks and lanes, without a host-device synchronisation."""
        value = share * value.detach()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def report(self, images: int, total: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Means of all metrics since the last report, read in its one host-device synchronisation. Collective."""
        names = sorted(self.sums)  # the same on every rank
        devices = [value.device for value in self.sums.values() if value.device.type != "cpu"]  # some are the CPU's own
        sums = [self.sums[name].double().to(devices[0] if devices else "cpu", non_blocking=True) for name in names]
        summed = total(torch.stack(sums)).tolist() if names else []
        means = {name: value / self.count for name, value in zip(names, summed, strict=True)}
        times = {"time/data_wait_s": self.wait_s / self.count, "time/step_s": self.step_s / self.count}
        rate = {"throughput/images_per_s": images * self.count / max(self.wait_s + self.step_s, 1e-9)}
        return means | times | rate


def train(  # noqa: PLR0913
    method: Method,
    learners: Mapping[str, Learner],
    frozen: Mapping[str, nn.Module],
    batches: Iterator[Sequence[Batch]],
    training: Training,
    observers: Observers,
    *,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    until: int | None = None,
    followers: Mapping[str, Follower] | None = None,
) -> None:
    """Run steps `start` to `until`, or to `training.steps`; raises NonFiniteError, naming step, role, times and
    samples, before a bad update.

    `batches` begin at step `start` and hold one batch for each of the rank's lanes; a run that is asked to stop ends
    early, after a checkpoint. A resumed run equals an uninterrupted one, since a lane's samples and randomness depend
    on (seed, lane, step) alone.
    """
    followers = followers or {}
    networks = {**frozen, **{role: learner.engine.module for role, learner in learners.items()}}
    networks |= {role: follower.module for role, follower in followers.items()}
    ours = Ours(training, share(training.lanes, rank, world_size), world_size)
    progress = Progress({})
    before = Counter(role for step in range(start) for role in method.turn(step))
    for role, learner in learners.items():
        learner.updates = before[role]
    end = training.steps if until is None else min(until, training.steps)
    for step in range(start, end):
        began = time.perf_counter()
        batch = next(batches)
        fetched = time.perf_counter()
        with fitting(training):
            seen = _backward(method, networks, learners, batch, ours, step, progress)
        for role, lanes in seen.items():
            behind = [follower for follower in followers.values() if follower.of == role]
            norm = _update(learners[role], role, lanes, step, training, behind)
            progress.add(f"gradient/{role}_norm", norm, 1 / world_size)
        progress.wait_s += fetched - began
        progress.step_s += time.perf_counter() - fetched
        progress.count += 1
        done = step + 1
        last, stop = done == end, False
        observers.step(done)
        if done % training.log_every == 0 or last:
            observers.metrics(done, progress.report(training.step_size, observers.total))
            progress = Progress({})
            stop = observers.stop()
        if done % training.checkpoint_every == 0 or last or stop:
            observers.checkpoint(done)
        if stop:
            return
        if training.picture_every and (done % training.picture_every == 0 or last):
            with fitting(training, picturing=True):
                observers.picture(done)


@contextmanager
def fitting(training: Training, *, picturing: bool = False) -> Iterator[None]:
    """Turn an out-of-memory error of the device into a UserError that says which settings need less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if picturing:
            raise UserError(
                f"the device is out of memory while pictures of the training are drawn: {error}\n"
                "--set training.picture_every=0 draws none, and changes no number"
            ) from error
        lanes, size = training.lanes, training.lane_size
        anew = "--set training.checkpointing=true computes activations anew and changes no number; or "
        halves = f"--set training.lane_size={size // 2} --set training.lanes={lanes * 2}"
        smaller = halves if size > 1 else "a smaller weights.rank"
        raise UserError(
            f"the device is out of memory with lanes of {size} samples: {error}\n"
            f"{'' if training.checkpointing else anew}{smaller}: another run"
        ) from error


@dataclass(frozen=True, slots=True)
class Ours:
    """This rank's part of every step: the lanes that it computes."""

    training: Training
    lanes: tuple[Lane, ...]
    world_size: int


@dataclass(frozen=True, slots=True)
class Seen:
    """The times and sample keys of a lane's loss, to be named where a number is not finite."""

    times: Tensor | None
    keys: Sequence[str]


def _backward(
    method: Method,
    networks: Networks,
    learners: Mapping[str, Learner],
    batches: Sequence[Batch],
    ours: Ours,
    step: int,
    progress: Progress,
) -> dict[str, list[Seen]]:
    """Run one forward and backward of each of the rank's lanes; return what each role's losses were computed on.
    Engines average over ranks, so that a lane's loss is multiplied by world size / lanes.
    """
    training, seen = ours.training, dict[str, list[Seen]]()
    last = batches[-1]
    for i, lane in enumerate(ours.lanes):
        batch = batches[i] if i < len(batches) else last  # computed once more, for nothing
        rng = generator(training.seed, lane.number, step, training.lanes)
        with torch.autocast(_device_type(batch), torch.bfloat16, enabled=training.precision == "bfloat16"):
            losses = method.losses(networks, batch, rng, step)
        _check(losses, method.turn(step), step)
        counts = lane.weight / training.lanes
        for role, loss in losses.items():
            learners[role].engine.backward(loss.value * (counts * ours.world_size))
            seen.setdefault(role, []).append(Seen(loss.times, list(batch.get("key", []))))
            for name, value in {f"loss/{role}": loss.value, **loss.metrics}.items():
                progress.add(name, value, counts)
    return seen


def _check(losses: Mapping[str, Loss], turn: Sequence[str], step: int) -> None:
    """Refuse, with UserError, what a method's `losses` may not return."""
    if set(losses) != set(turn):
        raise UserError(
            f"the method's losses() returned losses of {sorted(losses)} at step {step}, and its turn() is "
            f"{sorted(turn)}: there is one loss for each role of the turn"
        )
    for role, loss in losses.items():
        if loss.value.dim():
            raise UserError(
                f"the method's losses() returned a loss of shape {tuple(loss.value.shape)} for {role}; a loss is one "
                "number, such as its mean"
            )


def _update(
    learner: Learner, role: str, lanes: Sequence[Seen], step: int, training: Training, followers: Sequence[Follower]
) -> Tensor:
    """Update one role, its average and the networks that follow the role; return the gradient's norm."""
    try:
        norm = learner.engine.step(learning_rate(learner.optimizer, step, training.steps))
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} [{_where(role, lanes, step)}]") from error
    with learner.engine.trainable() as tensors:
        learner.average.update(tensors, learner.updates)
        for follower in followers:
            follower.update(tensors, step)
    learner.updates += 1
    return norm


def _where(role: str, lanes: Sequence[Seen], step: int) -> str:
    """Name the step, role, range of times and samples of a failed update."""
    every = [lane.times for lane in lanes if lane.times is not None]
    times = torch.cat(every) if every else None
    between = "" if times is None else f", times {float(times.min()):.4f} to {float(times.max()):.4f}"
    keys = ", ".join([key for lane in lanes for key in lane.keys][:8])
    return f"step {step}, role {role}{between}, samples {keys or 'unnamed'}"


def _device_type(batch: Batch) -> str:
    """Device type of the batch's first tensor."""
    return next(v.device.type for v in batch.values() if isinstance(v, Tensor))
