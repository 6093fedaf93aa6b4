"""The same run comes out of one, two and three ranks: real processes over gloo, on one plan of stored targets."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tests.each import EACH
from torch import Tensor

from raystill.data.batches import local_batches
from raystill.data.derive import Shard
from raystill.data.local import LocalStore
from raystill.data.plan import Plan
from raystill.data.records import pack_row
from raystill.data.shards import pack
from raystill.engine.protocol import Optimizer
from raystill.engine.replicated import ReplicatedEngine
from raystill.flow.premetrics import PseudoHuber
from raystill.flow.times import SamplingTimes
from raystill.methods.lcm import LCM
from raystill.methods.method import Batch
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.pipeline import load_pipeline
from raystill.models.weights import Lora
from raystill.training.distillation import DistillTask
from raystill.training.lanes import numbers, share
from raystill.training.loop import Training
from raystill.training.task import Assembly, Place, run_task

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

WORLDS = (3, 2, 1)  # the largest first: each has the processes of the next one
SIZES = (9, 5, 8)  # samples of the shards
CPU = torch.device("cpu")
TRAINING = Training(steps=24, lanes=3, lane_size=2, log_every=12, checkpoint_every=24, picture_every=0)
SMOOTH_LCM = LCM(premetric=PseudoHuber(c=0.1), target_decay=0.9)
LONG: dict[str, tuple[Distilling, torch.dtype, float]] = {  # and how far apart parameters and moments may be
    "rayflow-float64": (RayFlow(times=SamplingTimes()), torch.float64, 1e-10),
    "rayflow-float32": (RayFlow(), torch.float32, 1e-5),  # with a learned law of times, which is of that precision
    "lcm-float64": (SMOOTH_LCM, torch.float64, 1e-10),
    "lcm-float32": (SMOOTH_LCM, torch.float32, 1e-5),
}
MORTAL = Training(steps=12, lanes=3, lane_size=2, log_every=1, checkpoint_every=4, picture_every=0)
KILLED, RANKS = (6, 10, 12), (2, 1, 2)  # steps before which a run is killed, the last one its end, and ranks until then


@dataclass(frozen=True)
class Cast:
    """A distillation whose networks are of a precision, but for small ones, which are float32."""

    inner: DistillTask
    dtype: torch.dtype

    @property
    def training(self) -> Training:
        return self.inner.training

    @property
    def optimizer(self) -> Optimizer:
        return self.inner.optimizer

    @property
    def name(self) -> str:
        return self.inner.name

    def build(self, device: torch.device) -> Assembly:
        built = self.inner.build(device)
        large = [module for role, module in built.modules.items() if role not in built.small]
        for network in (*large, *built.frozen.values()):
            network.to(self.dtype)
        for follower in built.followers.values():
            follower.module.to(self.dtype)
            follower.tensors = {name: follower.module.get_parameter(name).data for name in follower.tensors}
        return built


def targets(directory: Path, pipeline: Path) -> tuple[LocalStore, tuple[Shard, ...]]:
    """Stored targets of no particular teacher."""
    store, rng, made = LocalStore(uri=str(directory)), np.random.default_rng(0), []
    condition = load_pipeline(pipeline).condition(["red heart"])["prompt"][0].numpy()
    for i, size in enumerate(SIZES):
        rows = [
            {
                "key": f"s{i}{j}", "caption": "red heart", "condition.prompt": condition,
                **{name: rng.standard_normal((4, 8, 8), dtype=np.float32) for name in ("x_0", "target_mean")},
            }
            for j in range(size)
        ]  # fmt: skip
        store.write(f"{i:06d}.tar", pack(pack_row(row) for row in rows))
        made.append(Shard(key=f"{i:06d}.tar", count=size))
    return store, tuple(made)


@dataclass(frozen=True)
class Given:
    """What a process is told."""

    root: Path
    pipeline: Path
    store: LocalStore
    shards: tuple[Shard, ...]

    def task(self, method: Distilling, training: Training, dtype: torch.dtype) -> Cast:
        lora = Lora(rank=2, alpha=2.0, targets=("to_q", "to_v", "conv1"))
        optimizer = Optimizer(learning_rate=1e-4, warmup_steps=2)
        inner = DistillTask(
            teacher=str(self.pipeline), method=method, weights=lora, optimizer=optimizer, training=training
        )
        return Cast(inner, dtype)

    def place(self, name: str, world: int, rank: int, task: Cast) -> Place:
        """Where a rank trains; what it reads of every step is kept beside its checkpoints."""
        training = task.training
        plan = Plan(shards=self.shards, seed=training.seed, lanes=training.lanes, lane_size=training.lane_size)
        lanes = numbers(share(training.lanes, rank, world))
        (self.root / "read").mkdir(exist_ok=True)

        def batches(start: int) -> Iterator[Sequence[Batch]]:
            every = local_batches(self.store, plan, lanes, start, training.steps - start, CPU)
            for step, found in enumerate(every, start):
                keys = [key for batch in found for key in batch["key"]]
                (self.root / "read" / f"{name}-{step}-{world}-{rank}.json").write_text(json.dumps(keys))
                yield [{k: v.to(task.dtype) if isinstance(v, Tensor) else v for k, v in b.items()} for b in found]

        checkpoints = LocalStore(uri=str(self.root / name))
        return Place(checkpoints, partial(ReplicatedEngine, world_size=world), batches, rank=rank, world_size=world)

    def read(self, name: str, step: int, world: int) -> list[str]:
        """Keys of what all of so many ranks read of a step, in the order of the ranks."""
        files = sorted((self.root / "read").glob(f"{name}-{step}-{world}-*.json"))
        return [key for file in files for key in json.loads(file.read_text())]

    def state(self, name: str, step: int) -> dict[str, Tensor]:
        """Parameters and moments of all roles in a checkpoint."""
        files = (self.root / name / f"step-{step:07d}").glob("*/state.safetensors")
        return {f"{file.parent.name}/{n}": tensor for file in files for n, tensor in load_file(file).items()}


@contextmanager
def group(root: Path, name: str, rank: int, world: int) -> Iterator[None]:
    """The process group of the first `world` processes."""
    dist.init_process_group("gloo", init_method=f"file://{root / name}", rank=rank, world_size=world)
    try:
        yield
    finally:
        dist.destroy_process_group()


def work(rank: int, given: Given) -> None:
    """One process: in groups of three, two and one."""
    torch.set_num_threads(1)
    for world in WORLDS:
        if rank < world:
            with group(given.root, f"group-{world}", rank, world):
                for name, task in tasks(given).items():
                    run_task(task, given.place(f"{name}-{world}", world, rank, task))
    for life, (end, world) in enumerate(zip(KILLED, RANKS, strict=True)):
        with group(given.root, f"all-{life}", rank, max(WORLDS)):
            dist.barrier()  # the life before has ended
        if rank < world:
            with group(given.root, f"life-{life}", rank, world):
                live(given, rank, world, end)


def tasks(given: Given) -> dict[str, Cast]:
    """Two dozen steps of two methods in two precisions, a step of every one, and the life of one that is not killed."""
    long = {name: given.task(method, TRAINING, dtype) for name, (method, dtype, _) in LONG.items()}
    once = replace(TRAINING, steps=1)
    short = {f"first-{method.name}": given.task(method, once, precise(method)) for method in EACH}
    return {**long, **short, "calm": given.task(LONG["rayflow-float64"][0], MORTAL, torch.float64)}


def precise(method: Distilling) -> torch.dtype:
    """float64, but where the network is told float32 numbers of where it lands."""
    return torch.float32 if method.tells_landing else torch.float64


class KilledError(Exception):
    """The machine is taken away."""


def live(given: Given, rank: int, world: int, end: int) -> None:
    """Go on from the last checkpoint; killed after the step before `end`, unless that is the last one."""
    task = given.task(LONG["rayflow-float64"][0], MORTAL, torch.float64)
    place = given.place("killed", world, rank, task)

    def batches(start: int) -> Iterator[Sequence[Batch]]:
        yield from islice(place.batches(start), end - start)
        raise KilledError

    with nullcontext() if end == MORTAL.steps else pytest.raises(KilledError):
        run_task(task, place if end == MORTAL.steps else replace(place, batches=batches))


@pytest.fixture(scope="module")
def given(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Given:
    """What three processes left behind."""
    root = tmp_path_factory.mktemp("ranks")
    found = Given(root, tiny_pipeline, *targets(root / "targets", tiny_pipeline))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        mp.spawn(work, (found,), nprocs=max(WORLDS), join=True)  # type: ignore[attr-defined,no-untyped-call]
    return found


def close(found: dict[str, Tensor], expected: dict[str, Tensor], bound: float) -> None:
    assert found.keys() == expected.keys()
    assert any("lora_B" in name and bool(tensor.any()) for name, tensor in expected.items())
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= bound, name


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", LONG)
def test_any_number_of_ranks_trains_the_same(given: Given, name: str, world: int) -> None:
    one, many = (given.state(f"{name}-{n}", TRAINING.steps) for n in (1, world))
    assert {role.split("/")[0] for role in one} == {"student", *(["time_sampler"] if name == "rayflow-float32" else [])}
    close(many, one, LONG[name][2])


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("method", EACH, ids=lambda method: method.name)
def test_every_method_has_the_same_first_gradients(given: Given, method: Distilling, world: int) -> None:
    """After one step AdamW's first moment is a tenth of the clipped gradient."""
    one, many = (
        {n: t for n, t in given.state(f"first-{method.name}-{w}", 1).items() if "/exp_avg/" in n} for w in (1, world)
    )
    assert {name.split("/")[0] for name in one} >= {"student"}
    close(many, one, 1e-6)  # small networks are float32
    for name, tensor in one.items():
        if name.startswith("student/") and precise(method) == torch.float64:
            assert float((many[name] - tensor).abs().max()) <= 1e-10, name


def test_a_run_that_changes_its_ranks_is_the_calm_one(given: Given) -> None:
    assert read_json(given.root / "killed" / "latest.json") == {"step": MORTAL.steps}
    close(given.state("killed", MORTAL.steps), given.state("calm-1", MORTAL.steps), 1e-10)


def test_no_sample_is_lost_or_seen_twice_when_ranks_change(given: Given) -> None:
    every = [key for step in range(MORTAL.steps) for key in given.read("calm-1", step, 1)]
    ranks = [n for n in RANKS for _ in range(MORTAL.checkpoint_every)]  # whose updates were kept
    assert [key for step, n in enumerate(ranks) for key in given.read("killed", step, n)] == every
    epoch = sum(SIZES)
    assert len(set(every[:epoch])) == epoch


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())
