"""What the platform costs: steps of the whole training loop beside bare forwards and backwards of the same model, and
targets beside bare forwards of the same teacher, in alternating blocks.
"""

import logging
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed as dist

from raystill.config.home import DIRECTORY
from raystill.data.derive import Source, Stage
from raystill.data.records import Row, unpack_row
from raystill.data.shards import Sample, unpack
from raystill.data.store import Store, open_store
from raystill.engine.protocol import Optimizer
from raystill.evaluation.timing import seconds
from raystill.flow.randomness import RandomStream
from raystill.launch.launcher import Launcher, LocalLauncher
from raystill.methods.method import Batch, Composition, Loss, Method, Networks, generator
from raystill.models.conditioning import expanded
from raystill.run.distill import compute_targets, target_maker, training_source
from raystill.run.experiments import prepare_experiment
from raystill.run.jobs import surroundings
from raystill.run.settings import Run
from raystill.targets.targets import TargetTransform
from raystill.tracking.tracking import Tracking, history, tracked, tracking_uri
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import Assembly

log = logging.getLogger(__name__)
BLOCK = 10  # steps of a block; blocks of whole and of bare steps alternate


class Timer:
    """The losses of a method that, every BLOCK steps, times as many bare forwards and backwards on the same batch and
    the same cores.

    The time between two calls is the loop's: update, average, waiting for data, metrics, reporting.
    """

    def __init__(self, inner: Method, bare: Networks) -> None:
        self.inner, self.bare = inner, bare
        self.mark, self.calls = 0.0, 0
        self.loop_s = self.bare_s = torch.zeros(())

    def losses(self, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The inner method's losses, with the seconds per step of the last two blocks as metrics."""
        if self.calls % BLOCK == 0:
            now = _together()
            if self.calls:
                self.loop_s = torch.tensor((now - self.mark) / BLOCK)
            self.bare_s = torch.tensor(self._bare(batch))
            self.mark = time.perf_counter()
        self.calls += 1
        losses = self.inner.losses(networks, batch, rng, step)
        for loss in losses.values():
            loss.metrics |= {"bench/loop_s": self.loop_s, "bench/bare_s": self.bare_s}
        return losses

    def _bare(self, batch: Batch) -> float:
        """Seconds per bare step: losses and backward, without an engine."""
        began = time.perf_counter()
        for i in range(BLOCK):
            for role, loss in self.inner.losses(self.bare, batch, generator(0, 0, i), i).items():
                loss.value.backward()
                self.bare[role].zero_grad(set_to_none=True)
        return (_together() - began) / BLOCK


def _together() -> float:
    """The time when all workers have come here, so that both kinds of block end with the slowest worker. Collective."""
    if dist.is_initialized():
        dist.barrier()  # COLLECTIVE
    return time.perf_counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTask:
    """The task of a distillation that also times blocks of bare steps."""

    inner: DistillTask
    training: Training
    optimizer: Optimizer
    name: str = "bench"

    def build(self, device: torch.device) -> Assembly:
        """Build the distillation's networks, and a second set of them for the bare steps."""
        built = self.inner.build(device)
        method, timer = built.method, Timer(built.method, self.inner.build(device).modules)
        timed = Composition(method.learners, method.needs, method.turn, timer.losses)
        return Assembly(timed, built.modules, optimizers=built.optimizers, small=built.small)


class TargetsBench:
    """A transform that times the targets of a batch and as many bare forwards of the same network, in turn."""

    def __init__(self, make: Callable[[], TargetTransform], blocks: int) -> None:
        self.inner, self.blocks = make(), blocks

    def read(self, sample: Sample) -> Row:
        """Read what the estimator of the targets needs of a sample."""
        return self.inner.read(sample)

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """One row of all blocks' seconds, `whole_s` and `bare_s`, shape (blocks,), and the number of samples."""
        rows = rows[: self.inner.batch_size]
        timed = [
            (seconds(partial(self.inner.compute, rows), 1), seconds(partial(self._bare, rows), 1))
            for _ in range(self.blocks)
        ]
        whole, bare = np.array(timed).T
        return [
            {"key": rows[0]["key"], "caption": "", "whole_s": whole, "bare_s": bare, "count": np.asarray(len(rows))}
        ]

    def _bare(self, rows: list[Row]) -> None:
        inner, pipeline = self.inner, self.inner.teacher.pipeline
        branches = 1 if getattr(inner.estimator, "guidance", 1.0) == 1 else 2
        x = torch.randn(branches * len(rows), *pipeline.latent_shape, device=inner.device)
        condition = expanded(pipeline.empty(), len(x))
        t = torch.full((len(x),), 500, device=inner.device)
        with torch.autocast(inner.device.type, torch.bfloat16, enabled=inner.precision == "bfloat16"):
            for _ in range(inner.estimator.calls // branches):
                pipeline.call(x, t, condition)


def bench(run: Run, *, local: bool = False, blocks: int = 8) -> str:
    """Run the loop and the bare steps in turn, on the cluster's workers or in this process; figures as text."""
    steps = BLOCK * (blocks + 2)
    training = replace(run.training, steps=steps, log_every=BLOCK, checkpoint_every=steps, picture_every=0)
    task = BenchTask(inner=replace(run.task, picture_captions=()), training=training, optimizer=run.optimizer)
    name = f"bench-{time.time_ns()}"  # every bench is a run of its own
    tracking = Tracking(uri=tracking_uri(DIRECTORY), experiment="bench", name=name, directory=DIRECTORY.resolve())
    engine = (
        "plain torch in this process"
        if local
        else f"{run.cluster.workers} workers, ZeRO stage {run.cluster.zero_stage}"
    )
    with surroundings(run, local=local) as launcher:
        prepare_experiment(tracking.uri, tracking.experiment)
        targets, index = compute_targets(run, launcher)
        checkpoints = open_store(run.work).join(f"bench/{name}")
        launcher.train(task, targets, index, checkpoints, partial(tracked, tracking, run))
        timed = time_targets(run, launcher, open_store(run.work).join(f"bench/{name}-targets"), blocks)
    names = ("bench/loop_s", "bench/bare_s", "time/data_wait_s")
    # The first two blocks hold the start of the stream and of every kernel.
    figures = {metric: history(tracking, run, metric)[2:] for metric in names}
    setting = f"{engine}, a lane of {training.lane_size} samples"
    return f"{_text(setting, figures)}\n{_targets_text(timed)}"


def time_targets(run: Run, launcher: Launcher, store: Store, blocks: int) -> list[Row]:
    """Time the teacher on one shard for every actor, all at once as in the stage itself; a row for each, or none where
    the estimator asks no teacher.
    """
    if run.targets.estimator.calls == 0:
        return []
    source = training_source(run)
    some = Source(source.store, source.entries[: 1 if isinstance(launcher, LocalLauncher) else run.cluster.actors])
    make = partial(TargetsBench, target_maker(run, launcher), blocks)
    index = launcher.derive(Stage(some, store, some.identity(stage="bench"), make, run.reading.max_bad_fraction))
    return [unpack_row(s) for shard in index.shards for s in unpack(store.read(shard.key), shard.key)]


def _targets_text(rows: list[Row]) -> str:
    """A line with the images per second of all actors, and the ratio of bare to whole seconds over the blocks."""
    if not rows:
        return "targets: this estimator does not ask the teacher"
    ratios = [bare / whole for row in rows for whole, bare in zip(row["whole_s"], row["bare_s"], strict=True)]
    whole, bare = (sum(float(r["count"]) / statistics.median(r[name]) for r in rows) for name in ("whole_s", "bare_s"))
    return (
        f"targets            {whole:8.1f} images/s, {bare:.1f} of bare forwards; "
        f"{statistics.median(ratios):.3f} median, {min(ratios):.3f} to {max(ratios):.3f}"
    )


def _text(setting: str, figures: dict[str, list[float]]) -> str:
    """The figures of the loop as lines: medians over blocks, and the ratio of loop to bare seconds over the blocks."""
    ratios = [a / b for a, b in zip(figures["bench/loop_s"], figures["bench/bare_s"], strict=True)]
    lines = [
        f"{name:18} {statistics.median(v) * 1000:8.1f} ms, median of {len(v)} blocks" for name, v in figures.items()
    ]
    ratio = f"loop / bare        {statistics.median(ratios):8.3f} median, {min(ratios):.3f} to {max(ratios):.3f}"
    return "\n".join([f"{setting}, torch {torch.__version__}", *lines, ratio])
