"""Methods with two ZeRO workers of Ray Train: the same at every stage."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray.cloudpickle
import torch
import torch.distributed as dist
from PIL.Image import Image
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from raystill.data.batches import local_batches
from raystill.data.derive import Index
from raystill.data.local import LocalStore
from raystill.data.plan import Plan
from raystill.engine.protocol import Optimizer
from raystill.flow.premetrics import PseudoHuber
from raystill.flow.stein import SteinTimes
from raystill.launch.settings import Cluster
from raystill.methods.add import ADD
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.weights import Full, Lora
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import Place, final_averages, run_task

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
LORA = Lora(rank=2, alpha=2.0, targets=("to_q", "to_v", "conv1"))
LCM_SMOOTH = LCM(premetric=PseudoHuber(c=0.1), target_decay=0.5)  # by default it is nearly |d|: signs turn in rounding
STEPS, BATCH = 4, 4


@dataclass(frozen=True)
class Case:
    """A training that is done at every one of some stages."""

    method: Distilling
    weights: Lora | Full = LORA
    stages: tuple[int, ...] = (0, 3)
    atol: float = 5e-4  # of trained tensors

    def __str__(self) -> str:
        return f"{self.method.name}-{type(self.weights).__name__}"


CASES = [
    Case(RayFlow(times=SteinTimes(warmup_steps=2)), stages=(0, 1, 2, 3), atol=1e-4),  # with a learned law of times
    Case(DMD2(ratio=2), stages=(0, 2, 3)),
    Case(Lightning(stages=(8, 4), first=16, stage_steps=2)),
    Case(ADD()),
    Case(LCM_SMOOTH),
    Case(LCM_SMOOTH, Full()),
    Case(CTM(most=2, target_decay=0.5), Full()),
]
# Of CTM, of all weights of a method, and of stages between others.
SECOND = [Case(CTM(most=2, target_decay=0.5)), Case(DMD2(ratio=2), Full(), (0, 1, 2, 3))]


class Steps:
    """A recorder that writes losses and norms of every step into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: value for name, value in values.items() if not name.startswith(("time/", "throughput/"))}
        with self.file.open("a") as file:
            print(json.dumps({"step": step, **numbers}), file=file)

    def picture(self, name: str, picture: Image, step: int) -> None:
        raise AssertionError(f"no picture was asked for, got {name} at {step}")


def work(teacher: Path, data: LocalStore, index: Index, root: Path, cases: list[Case]) -> None:
    """One rank: trains every case at each of its stages in turn."""
    from raystill.engine.zero import ZeroEngine  # not on the driver: DeepSpeed belongs to the workers

    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    plan = Plan(shards=index.shards, seed=0, lanes=ranks, lane_size=BATCH)
    for case in cases:
        for stage in case.stages:
            task = DistillTask(
                teacher=str(teacher), method=case.method, weights=case.weights,
                optimizer=Optimizer(learning_rate=1e-3, warmup_steps=2),
                training=Training(
                    steps=STEPS, lanes=ranks, lane_size=BATCH, average_decay=0.5, log_every=1, checkpoint_every=STEPS,
                    picture_every=0,
                ),
                separate=stage == 3,
            )  # fmt: skip
            directory = root / str(case) / str(stage)
            directory.mkdir(parents=True, exist_ok=True)
            place = Place(
                checkpoints=LocalStore(uri=str(directory)), engine=partial(ZeroEngine, stage=stage),
                batches=lambda step: local_batches(data, plan, [rank], step, STEPS - step, torch.device("cpu")),
                recorder=None if rank else Steps(directory / "steps"), rank=rank, world_size=ranks,
            )  # fmt: skip
            run_task(task, place)


@pytest.fixture(scope="module")
def root(
    session: Cluster,
    targets: tuple[LocalStore, Index],
    tiny_pipeline: Path,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Path]:
    """What the trainings of the chosen tests wrote; one fit for all, because starting the workers takes most of its
    time.
    """  # fmt: skip
    root = tmp_path_factory.mktemp("methods")
    items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.path == request.path]
    cases: list[Any] = [item.callspec.params["case"] for item in items]
    # Workers cannot import a test: what this file defines is sent to them whole.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    scaling = ScalingConfig(num_workers=session.workers, resources_per_worker=session.worker.amounts)
    run = RunConfig(name="methods", storage_path=str(root / "ray"))
    TorchTrainer(partial(work, tiny_pipeline, *targets, root, cases), scaling_config=scaling, run_config=run).fit()
    yield root
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=pytest.mark.second) for case in SECOND)], ids=str)
def test_roles_are_trained_the_same_at_every_stage(root: Path, case: Case) -> None:
    first, *others = (root / str(case) / str(stage) for stage in case.stages)
    expected = final_averages(LocalStore(uri=str(first)), STEPS)
    assert expected is not None
    for other in others:
        for found, step in zip(steps(other), steps(first), strict=True):
            assert found == pytest.approx(step, rel=1e-2, abs=1e-5)
        averages = final_averages(LocalStore(uri=str(other)), STEPS)
        assert averages is not None
        assert set(averages) == set(expected) >= set(case.method.learners)
        for role, tensors in expected.items():
            assert set(averages[role]) == set(tensors)
            for name, tensor in tensors.items():
                torch.testing.assert_close(averages[role][name], tensor, rtol=1e-3, atol=case.atol)


def steps(directory: Path) -> list[dict[str, float]]:
    """Losses and norms of the steps."""
    return [json.loads(line) for line in (directory / "steps").read_text().splitlines()]
