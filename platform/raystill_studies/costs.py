"""Costs of a training, of a process that does nothing else: seconds of steps and of stored targets, and memory."""

import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import islice, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from raystill.data.records import RejectedSampleError
from raystill.data.shards import unpack
from raystill.engine.local import LocalEngine
from raystill.launch.command import quiet_libraries
from raystill.launch.launcher import LocalLauncher
from raystill.methods.method import Batch, Composition, Method, generator
from raystill.models.averaging import Average
from raystill.models.conditioning import expanded, moved
from raystill.models.pipeline import load_pipeline
from raystill.run.distill import target_maker, training_source
from raystill.run.settings import Run
from raystill.training.distillation import DistillTask
from raystill.training.loop import Learner, Observers, Training, train

PICKED = 12  # steps of a training that are timed in each round, about
LEAST = 4  # steps that are timed, at least, of each kind of turn (the roles that a step updates)


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one training on this machine."""

    step_s: float  # seconds of a step, without the wait for data
    target_s: float  # seconds of one stored target, read and computed
    peak_gib: float  # peak memory above what a process has before it builds networks


def reordered(method: Method, steps: Sequence[int]) -> Method:
    """The method with only some of its steps, in the order given."""
    return Composition(
        method.learners, method.needs, lambda step: method.turn(steps[step]),
        lambda networks, batch, rng, step: method.losses(networks, batch, rng, steps[step]),
    )  # fmt: skip


def machine() -> str:
    """Linux's identifier of this machine since it was started: seconds of another machine do not compare."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def comparable(
    costs: Mapping[str, Mapping[str, Any]], of: Mapping[str, str], rounds: int, here: str
) -> dict[str, Mapping[str, Any]]:
    """Stored costs, by label, whose settings are the present ones; while rounds are missing, which are measured here,
    only those of the same machine.
    """
    known = {label: cost for label, cost in costs.items() if cost["of"] == of.get(label)}
    if all(len(known.get(label, {}).get("rounds", ())) >= rounds for label in of):
        return known
    return {label: cost for label, cost in known.items() if cost["machine"] == here}


def timed(run: Run, threads: int, offset: float) -> Cost:
    """Measure the cost of a training in a process of its own; `offset`, in [0, 1), says which steps are timed."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(measured, run, threads, offset).result()


def mean(every: Sequence[Cost]) -> Cost:
    """The mean cost of several rounds."""
    return Cost(*(statistics.fmean(values) for values in zip(*map(astuple, every), strict=True)))


def measured(run: Run, threads: int, offset: float) -> Cost:
    """Measure the cost of a training in this process: of some steps on a batch of noise, and of a batch of targets."""
    quiet_libraries()
    torch.set_num_threads(threads)
    launcher = LocalLauncher()
    before = _forget_peak(launcher.device)
    step_s = _step_seconds(run.task, launcher.device, offset)
    peak = _peak(launcher.device) - before
    return Cost(step_s, _target_seconds(run, launcher), peak)


def _step_seconds(task: DistillTask, device: torch.device, offset: float) -> float:
    """Mean seconds of a step over the whole training: each kind of turn counts as often as it comes."""
    torch.manual_seed(task.training.seed)
    built = task.build(device)
    learners = {}
    for role, module in built.modules.items():
        optimizer = built.optimizers.get(role, task.optimizer)
        engine = LocalEngine(module, optimizer, device)
        with engine.trainable() as tensors:
            learners[role] = Learner(engine, optimizer, Average(tensors, task.training.average_decay))
    shares, picked = picks(built.method, task.training.steps, offset)
    order = [step for steps in picked.values() for step in (steps[0], *steps)]  # the first of a kind warms up
    seconds: list[float] = []
    training = Training(
        steps=len(order), lanes=task.training.lanes, lane_size=task.training.lane_size,
        precision=task.training.precision, log_every=1, checkpoint_every=len(order), picture_every=0,
    )  # fmt: skip
    frozen = {role: network.to(device).eval() for role, network in built.frozen.items()}
    train(
        reordered(built.method, order), learners, frozen,
        repeat([_noise(task, device)] * training.lanes), training,
        Observers(metrics=lambda _step, values: seconds.append(values["time/step_s"])), followers=built.followers,
    )  # fmt: skip
    timed = iter(seconds)
    return sum(shares[kind] * statistics.fmean([*islice(timed, len(s) + 1)][1:]) for kind, s in picked.items())


def picks(
    method: Method, steps: int, offset: float
) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], list[int]]]:
    """Shares of the kinds of turn in a training, and steps of each kind, spread over it; `offset`, in [0, 1), moves
    them.
    """
    kinds: dict[tuple[str, ...], list[int]] = {}
    for step in range(steps):
        kinds.setdefault(method.turn(step), []).append(step)
    shares = {kind: len(every) / steps for kind, every in kinds.items()}
    counts = {kind: min(len(kinds[kind]), max(LEAST, round(PICKED * share))) for kind, share in shares.items()}
    picked = {
        kind: [every[int((i + offset) / counts[kind] * len(every))] for i in range(counts[kind])]
        for kind, every in kinds.items()
    }
    return shares, picked


def _target_seconds(run: Run, launcher: LocalLauncher) -> float:
    """Mean seconds of one target, over a batch of the first shard that is trained on."""
    transform, source = target_maker(run, launcher)(), training_source(run)
    key = source.entries[0].key
    samples = list(islice(unpack(source.store.read(key), key), run.targets.batch_size))
    for some in (samples[:1], samples):  # the first one warms up
        rows, began = [], time.perf_counter()
        for sample in some:
            with suppress(RejectedSampleError):
                rows.append(transform.read(sample))
        transform.compute(rows)
    return (time.perf_counter() - began) / len(samples)


def _noise(task: DistillTask, device: torch.device) -> Batch:
    """A batch of random data and target means, with the condition of the empty caption."""
    pipeline, count = load_pipeline(task.teacher), task.training.lane_size
    x_0, mean = generator(0, 0, 0).normal((2, count, *pipeline.latent_shape)).to(device)
    condition = moved(expanded(pipeline.empty(), count), device)
    return {"x_0": x_0, "target_mean": mean, "condition": condition}


def _forget_peak(device: torch.device) -> float:
    """Reset the peak of the memory; return the present memory, GiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM is VmRSS again
    return _peak(device)


def _peak(device: torch.device) -> float:
    """Peak memory of the device, or of the process, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20
