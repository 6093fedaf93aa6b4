"""Methods of several roles, through Ray Train with two ZeRO workers: the same at every stage."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray.cloudpickle
import torch
from PIL.Image import Image
from tests.cluster.test_train import CLUSTER, Trained, data, session

from raystill.data.derive import Index
from raystill.data.local import LocalStore
from raystill.engine.protocol import Optimizer
from raystill.flow.premetrics import PseudoHuber
from raystill.methods.add import ADD
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.table import Distilling
from raystill.models.weights import Full, Lora
from raystill.orchestration.cluster import RayLauncher
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import final_averages

__all__ = ["data", "session"]  # fixtures
pytestmark = [pytest.mark.cluster, pytest.mark.slow]
LORA = Lora(rank=2, alpha=2.0, targets=("to_q", "to_v", "conv1"))
LCM_SMOOTH = LCM(premetric=PseudoHuber(c=0.1), target_decay=0.5)  # by default it is nearly |d|: signs turn in rounding
STAGES: list[tuple[Distilling, Lora | Full, tuple[int, ...]]] = [
    (DMD2(ratio=2), LORA, (0, 1, 2, 3)),
    (Lightning(stages=(8, 4), first=16, stage_steps=2), LORA, (0, 3)),
    (ADD(), LORA, (0, 3)),
    (LCM_SMOOTH, LORA, (0, 3)),
    (LCM_SMOOTH, Full(), (0, 2, 3)),
    (DMD2(ratio=2), Full(), (0, 3)),
    (CTM(most=2, target_decay=0.5), LORA, (0, 3)),
    (CTM(most=2, target_decay=0.5), Full(), (0, 3)),
]


@pytest.fixture(scope="module", autouse=True)
def sent() -> Iterator[None]:
    """Workers cannot import a test: what this file defines is sent to them whole."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Steps:
    """A recorder that writes losses and norms of every step into a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        numbers = {name: value for name, value in values.items() if not name.startswith(("time/", "throughput/"))}
        with self.file.open("a") as file:
            print(json.dumps({"step": step, **numbers}), file=file)

    def picture(self, name: str, picture: Image, step: int) -> None:
        raise AssertionError(f"no picture was asked for, got {name} at {step}")


def trained(
    task: DistillTask, data: tuple[LocalStore, Index], directory: Path, zero_stage: int
) -> tuple[list[dict[str, float]], Trained]:
    """Losses and norms of the steps, and the averages."""
    directory.mkdir()
    checkpoints = LocalStore(uri=str(directory / "checkpoints"))
    launcher = RayLauncher(replace(CLUSTER, zero_stage=zero_stage), directory)
    launcher.train(task, *data, checkpoints, partial(Steps, directory / "steps"))
    averages = final_averages(checkpoints, task.training.steps)
    assert averages is not None
    return [json.loads(line) for line in (directory / "steps").read_text().splitlines()], averages


@pytest.mark.parametrize(
    ("method", "weights", "stages"), STAGES, ids=[f"{method.name}-{type(w).__name__}" for method, w, _ in STAGES]
)
def test_roles_are_trained_the_same_at_every_stage(
    method: Distilling,
    weights: Lora | Full,
    stages: tuple[int, ...],
    data: tuple[LocalStore, Index],
    tiny_pipeline: Path,
    tmp_path: Path,
) -> None:
    task = DistillTask(
        teacher=str(tiny_pipeline), method=method, weights=weights,
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=2),
        training=Training(steps=4, batch_size=4, average_decay=0.5, log_every=1, checkpoint_every=4, picture_every=0),
    )  # fmt: skip
    first, *others = (trained(task, data, tmp_path / str(stage), stage) for stage in stages)
    for steps, averages in others:
        for found, expected in zip(steps, first[0], strict=True):
            assert found == pytest.approx(expected, rel=1e-2, abs=1e-5)
        assert set(averages) == set(first[1])
        for role, tensors in first[1].items():
            assert set(averages[role]) == set(tensors)
            for name, tensor in tensors.items():
                torch.testing.assert_close(averages[role][name], tensor, rtol=1e-3, atol=5e-4)
