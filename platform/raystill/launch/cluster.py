"""Stages and trainings on a Ray cluster: an actor pool for derived shards, Ray Train workers with ZeRO engines for
trainings.
"""

import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

import ray
import ray.train
import torch
from ray._private import ray_constants
from ray.exceptions import RayError, RayTaskError
from ray.experimental import tqdm_ray
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raystill.config.digest import canonical_json
from raystill.config.errors import UserError
from raystill.config.files import own_modules
from raystill.config.home import DIRECTORY
from raystill.data.derive import Index, Stage
from raystill.data.plan import Plan
from raystill.data.store import Store
from raystill.data.stream import derive_stream, nodes, stream_batches
from raystill.engine.precision import advice
from raystill.engine.protocol import NonFiniteError
from raystill.launch.command import quiet_libraries, worker_log
from raystill.launch.launcher import Item, Result
from raystill.launch.placement import check_resources, machines, options_of, threads_of
from raystill.launch.settings import Cluster
from raystill.launch.stopping import MakeRecorder, asked_to_stop, recorded, saving
from raystill.training.lanes import numbers, share
from raystill.training.profiling import profiled
from raystill.training.task import Place, Task, last_step, run_task

log = logging.getLogger(__name__)


@contextmanager
def ray_session(cluster: Cluster, variables: Mapping[str, str]) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, whose workers get `variables`, or start one on this machine; UserError
    where the cluster does not answer or is too small.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its notes on stderr are for developers of Ray
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    address = os.environ.get("RAY_ADDRESS")
    # Bars of many processes would run into each other on the driver's terminal; a training's own is Ray's, which Ray
    # Train's patch of print would send twice: what comes after its end begins a second one.
    bars = {"TQDM_DISABLE": "1", "RAY_TRAIN_ENABLE_PRINT_PATCH": "0"}
    options: dict[str, Any] = {"runtime_env": {"env_vars": {**variables, **bars}}}
    if not address:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "num_cpus": os.cpu_count(),
            # Readers come and go; a new process for each of them costs seconds of imports.
            "_system_config": {"idle_worker_killing_time_threshold_ms": 60_000},
        }
    # Without clusters of several machines, as on Windows, Ray's servers listen on the loopback address only.
    ray_constants.ENABLE_RAY_CLUSTER = bool(address)
    terminated, here = signal.getsignal(signal.SIGTERM), Path.cwd()
    try:
        _knock(address)
        ray.init(logging_level=logging.WARNING, configure_logging=False, **options)
        signal.signal(signal.SIGTERM, terminated)  # Ray's own would end this process at once, with nothing cleaned up
    except (OSError, RuntimeError, ValueError) as error:
        if not address:
            raise
        raise UserError(
            f"RAY_ADDRESS is {address}, where no Ray cluster answered: {str(error).splitlines()[0]}\n"
            "Check the address with: ray status --address ADDRESS; unset RAY_ADDRESS to use this machine alone"
        ) from error
    try:
        check_resources(cluster)
        _unpack_everywhere()
        os.chdir(here)
        yield
    finally:
        ray.shutdown()


def _knock(address: str | None) -> None:
    """Raise OSError where nobody listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


def _unpack_everywhere() -> None:
    """Have nodes that share a machine unpack a submitted job's files now: each of them replaces what another one has
    unpacked, and whoever reads there meanwhile, this process included, would find its directory gone.
    """
    every = nodes({})
    if len(every) > len(machines()):
        for node in every:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ray.get(ray.remote(lambda: None).options(num_cpus=0, scheduling_strategy=where).remote())


@dataclass(slots=True)
class RayLauncher:
    """The launcher that runs stages and trainings on the connected Ray cluster."""

    cluster: Cluster
    directory: Path  # local directory of Ray Train's own small files

    def __post_init__(self) -> None:
        """Have recipes and methods of users' own files sent to the workers, which cannot import them."""
        for module in own_modules():
            ray.cloudpickle.register_pickle_by_value(module)

    @property
    def stage_device(self) -> str:
        """The device of a stage's networks: "cuda" where every actor has a GPU, else "cpu"."""
        return "cuda" if self.cluster.actor.gpus else "cpu"

    def derive(self, stage: Stage) -> Index:
        """Compute a stage's derived shards in an actor pool, or find them; return their index."""
        options = options_of(self.cluster.actor)
        try:
            return derive_stream(stage, actors=self.cluster.actors, options=options)
        except RayError as error:
            raise _for_people(error) from error

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
        """Train a task on the cluster's workers, each of which restores the newest checkpoint by itself."""
        if last_step(checkpoints) >= (until or task.training.steps):
            return
        share, threads = self.cluster.worker, threads_of(self.cluster.worker)
        work = _Work(
            task, data, index, checkpoints, recorder, self.cluster.zero_stage, threads, self.cluster.reader_labels,
            Path.cwd(), until,
        )  # fmt: skip
        trainer = TorchTrainer(
            partial(_train_worker, work),  # as train_loop_config the controller would unpickle it, and import it all
            scaling_config=ScalingConfig(
                num_workers=self.cluster.workers,
                use_gpu=share.gpus > 0,
                resources_per_worker=share.amounts,
                label_selector=dict(share.labels) or None,  # type: ignore[call-arg]
            ),
            run_config=RunConfig(
                name=task.name,
                storage_path=str((self.directory / "ray").resolve()),
                failure_config=FailureConfig(max_failures=self.cluster.max_failures),
                logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]
            ),
        )
        try:
            with saving(checkpoints):
                _fit(trainer)
        except WorkerGroupError as error:
            raise _for_people(error) from error

    def each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Result]]:
        """Run `work` on the items in Ray tasks with a training worker's resources, as many at once as fit."""
        task: Any = ray.remote(**options_of(self.cluster.worker))(_alone)
        threads = threads_of(self.cluster.worker)
        waiting = {task.remote(work, item, threads, Path.cwd()): number for number, item in enumerate(items)}
        try:
            while waiting:
                done, _ = ray.wait(list(waiting), num_returns=1)
                yield waiting.pop(done[0]), ray.get(done[0])
        except RayError as error:
            raise _for_people(error) from error


def _alone(work: Callable[[Item], Result], item: Item, threads: int, directory: Path) -> Result:
    """Run `work` on one item in a Ray task."""
    quiet_libraries()
    settle(threads, directory)
    return work(item)


def settle(threads: int, directory: Path) -> None:
    """Limit torch to so many threads, and change to the driver's directory where there is one of that name."""
    torch.set_num_threads(threads)  # more than its CPUs would make threads wait for each other at every operation
    if directory.is_dir():  # Ray starts workers in a scratch directory of their own
        os.chdir(directory)


def _fit(trainer: TorchTrainer) -> None:
    """Run a trainer in a second thread: in the main one Ray Train would take Ctrl-C and end the process by it."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # noqa: BLE001  # it is raised where people wait
            failed.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _for_people(error: BaseException) -> BaseException:
    """The UserError among the causes of a worker's or actor's error, where there is one; else the error as it is."""
    causes = list(error.worker_failures.values()) if isinstance(error, WorkerGroupError) else [error]
    while causes:
        cause = causes.pop()
        inner = cause.cause if isinstance(cause, RayTaskError) else cause
        if isinstance(inner, NonFiniteError):
            return NonFiniteError(f"the training was stopped before a bad update: {inner}")
        if isinstance(inner, UserError):
            return inner
        causes += [c for c in (inner if inner is not cause else None, inner.__cause__) if c is not None]
    return error


@dataclass(slots=True)
class _Work:
    """All that a training worker is sent."""

    task: Task
    data: Store
    index: Index
    checkpoints: Store
    recorder: MakeRecorder | None
    zero_stage: int
    threads: int  # torch threads of each worker
    reader_labels: Mapping[str, str]
    directory: Path  # the driver's directory, for relative paths in the settings
    until: int | None  # step at which to save and end for now; None is the training's last step


def _train_worker(work: _Work) -> None:
    """Run one rank of a training in a worker of Ray Train."""
    from raystill.engine.zero import (
        ZeroEngine,
        agree,
        anywhere,
        total,
    )  # imported here: it chooses its accelerator where it runs

    settle(work.threads, work.directory)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    worker_log(DIRECTORY / "logs", work.task.name, rank)
    device = ray.train.torch.get_device()
    training = work.task.training
    agree(canonical_json(work.task))
    plan = Plan(shards=work.index.shards, seed=training.seed, lanes=training.lanes, lane_size=training.lane_size)
    lanes = numbers(share(training.lanes, rank, world_size))
    begins = last_step(work.checkpoints)
    log.info(
        "rank %d of %d on %s: lanes %s from step %d of %d", rank, world_size, device, lanes, begins, training.steps
    )
    if not rank and (line := advice(training.precision, torch.device(device))):
        log.warning("%s", line)
    with (
        recorded(None if rank else work.recorder, work.checkpoints, work.until or training.steps) as recorder,
        nullcontext(lambda _step: None) if rank else _progress(work.task, begins) as moved,
        profiled(DIRECTORY / "profiles" / f"{work.task.name}-{rank}", moved) as stepped,
    ):
        place = Place(
            checkpoints=work.checkpoints,
            engine=lambda module, optimizer: ZeroEngine(module, optimizer, work.zero_stage, training.precision, device),
            batches=lambda step: stream_batches(
                work.data, plan, lanes, step, training.steps - step, device, work.reader_labels, world_size
            ),
            recorder=recorder,
            rank=rank,
            world_size=world_size,
            device=torch.device(device),
            until=work.until,
            stop=lambda: anywhere(rank == 0 and asked_to_stop(work.checkpoints)),
            total=total,
            on_step=stepped,
        )
        run_task(work.task, place)


@contextmanager
def _progress(task: Task, start: int) -> Iterator[Callable[[int], None]]:
    """Give a function that moves the driver's progress bar to a step; the bar is of what is left to train, since Ray's
    cannot begin in the middle and would count an earlier run's steps into the speed.
    """
    desc = f"{task.name} from step {start}" if start else task.name
    with closing(tqdm_ray.tqdm(total=task.training.steps - start, desc=desc, unit="step")) as bar:
        bar.refresh()
        yield lambda step: bar.update(step - start - bar.n)
