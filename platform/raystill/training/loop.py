"""The training loop: batches through a method's losses into engines; knows neither Ray nor which method it runs."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raystill.config.fingerprint import Knob, introduced
from raystill.engine.learning_rate import learning_rate
from raystill.engine.protocol import Engine, NonFiniteError, Optimizer
from raystill.methods.method import Batch, Loss, Method, generator
from raystill.models.averaging import Average, Follower


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """How long and how a role is trained; progress is counted in steps of `batch_size` samples per worker."""

    steps: int = introduced(1000)
    batch_size: int = introduced(32)  # samples per worker and step
    seed: int = introduced(0)
    average_decay: float = introduced(0.999)  # of the exponential moving average of the trained tensors
    precision: str = introduced("float32")  # of activations: "float32" or "bfloat16" (autocast)
    log_every: Knob[int] = 10  # steps
    checkpoint_every: Knob[int] = 200  # steps; the last step is always saved
    picture_every: Knob[int] = 200  # steps; 0 draws none


@dataclass(slots=True)
class Learner:
    """One role: its engine, its optimizer's settings and the average of its trained tensors."""

    engine: Engine
    optimizer: Optimizer
    average: Average
    updates: int = 0  # so far


def _nothing(_step: int) -> None:
    """Observe nothing."""


@dataclass(slots=True)
class Observers:
    """What happens beside the updates; every rank calls each of them at the same steps."""

    metrics: Callable[[int, dict[str, float]], None] = lambda _step, _values: None
    checkpoint: Callable[[int], None] = _nothing  # after the update of the given step count
    picture: Callable[[int], None] = _nothing
    stop: Callable[[], bool] = lambda: False  # asked after metrics; what all ranks agree on: save, and train no further


@dataclass(slots=True)
class Progress:
    """Sums since the last report; tensors stay on the device until then."""

    sums: dict[str, Tensor]
    wait_s: float = 0.0
    step_s: float = 0.0
    count: int = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar without a host-device synchronisation."""
        self.sums[name] = self.sums[name] + value.detach() if name in self.sums else value.detach().clone()

    def report(self, images: int) -> dict[str, float]:
        """Means since the last report; reading them is the report's one host-device synchronisation."""
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        times = {"time/data_wait_s": self.wait_s / self.count, "time/step_s": self.step_s / self.count}
        rate = {"throughput/images_per_s": images * self.count / max(self.wait_s + self.step_s, 1e-9)}
        return means | times | rate


def train(  # noqa: PLR0913
    method: Method,
    learners: Mapping[str, Learner],
    frozen: Mapping[str, nn.Module],
    batches: Iterator[Batch],
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

    The batches begin at step `start`; a run that is asked to stop ends early, after a checkpoint. A resumed run equals
    an uninterrupted one, since each step's randomness depends on (seed, rank, step) alone.
    """
    followers = followers or {}
    networks = {**frozen, **{role: learner.engine.module for role, learner in learners.items()}}
    networks |= {role: follower.module for role, follower in followers.items()}
    progress = Progress({})
    before = Counter(role for step in range(start) for role in method.turn(step))
    for role, learner in learners.items():
        learner.updates = before[role]
    end = training.steps if until is None else min(until, training.steps)
    for step in range(start, end):
        began = time.perf_counter()
        batch = next(batches)
        fetched = time.perf_counter()
        with torch.autocast(_device_type(batch), torch.bfloat16, enabled=training.precision == "bfloat16"):
            losses = method.losses(networks, batch, generator(training.seed, rank, step), step)
        for role, loss in losses.items():
            behind = [follower for follower in followers.values() if follower.of == role]
            _update(learners[role], role, loss, batch, step, training, progress, behind)
        progress.wait_s += fetched - began
        progress.step_s += time.perf_counter() - fetched
        progress.count += 1
        done = step + 1
        last, stop = done == end, False
        if done % training.log_every == 0 or last:
            observers.metrics(done, progress.report(training.batch_size * world_size))
            progress = Progress({})
            stop = observers.stop()
        if done % training.checkpoint_every == 0 or last or stop:
            observers.checkpoint(done)
        if stop:
            return
        if training.picture_every and (done % training.picture_every == 0 or last):
            observers.picture(done)


def _update(
    learner: Learner,
    role: str,
    loss: Loss,
    batch: Batch,
    step: int,
    training: Training,
    progress: Progress,
    followers: Sequence[Follower],
) -> None:
    """One backward, one update and one step of the average, and of all that follow it, for one role."""
    learner.engine.backward(loss.value)
    try:
        norm = learner.engine.step(learning_rate(learner.optimizer, step, training.steps))
    except NonFiniteError as error:
        raise NonFiniteError(f"{error} [{_where(role, loss, batch, step)}]") from error
    with learner.engine.trainable() as tensors:
        learner.average.update(tensors, learner.updates)
        for follower in followers:
            follower.update(tensors, step)
    learner.updates += 1
    progress.add(f"loss/{role}", loss.value)
    progress.add(f"gradient/{role}_norm", norm)
    for name, value in loss.metrics.items():
        progress.add(name, value)


def _where(role: str, loss: Loss, batch: Batch, step: int) -> str:
    """Name the step, role, range of times and samples of a failed update."""
    times = "" if loss.times is None else f", times {float(loss.times.min()):.4f} to {float(loss.times.max()):.4f}"
    keys = ", ".join(list(batch.get("key", []))[:8])
    return f"step {step}, role {role}{times}, samples {keys or 'unnamed'}"


def _device_type(batch: Batch) -> str:
    """Device type of the batch's first tensor."""
    return next(v.device.type for v in batch.values() if isinstance(v, Tensor))
