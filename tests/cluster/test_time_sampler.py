"""A learned law of times through Ray Train with two ZeRO workers: a second role, the same at every stage."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import ray
import ray.cloudpickle
import torch
from torch import Tensor

from raystill.data.derive import Index, Source, derive
from raystill.data.local import LocalStore
from raystill.data.records import Reading
from raystill.data.shards import Sample, pack
from raystill.data.targets import Generated, TargetTransform
from raystill.engine.protocol import Optimizer
from raystill.flow.stein import SteinTimes
from raystill.methods.rayflow import TIME_SAMPLER, RayFlow
from raystill.models.lora import Lora
from raystill.orchestration.cluster import RayLauncher, ray_session
from raystill.orchestration.run import Cluster
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import final_averages

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

CLUSTER = Cluster(workers=2, worker_cpus=0.8, actors=1, max_failures=0)


@pytest.fixture(scope="module", autouse=True)
def session() -> Iterator[None]:
    """Ray on this machine."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with ray_session(CLUSTER):
            yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def data(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, Index]:
    """Targets of 12 samples in 4 shards."""
    source, target = (LocalStore(uri=str(tmp_path_factory.mktemp("data") / part)) for part in ("source", "targets"))
    for i in range(4):
        captions = {f"s{i}{j}": ("red heart", "cat face")[j % 2] for j in range(3)}
        source.write(f"{i:06d}.tar", pack(Sample(key=k, members={"txt": c.encode()}) for k, c in captions.items()))
    make = partial(TargetTransform, tiny_pipeline, Generated(steps=2), Reading(), 0, 8, "float32")
    return target, derive(Source.of(source), target, make, {}, 0.0)


def train(tiny_pipeline: Path, data: tuple[LocalStore, Index], directory: Path, stage: int) -> dict[str, Tensor]:
    """Averages of the law after six steps, the last four of which draw from it."""
    task = DistillTask(
        teacher=str(tiny_pipeline),
        method=RayFlow(times=SteinTimes(warmup_steps=2)),
        lora=Lora(rank=2, alpha=2.0, targets=("to_q", "to_v")),
        optimizer=Optimizer(learning_rate=5e-3, warmup_steps=2),
        training=Training(steps=6, batch_size=4, average_decay=0.5, log_every=2, checkpoint_every=3, picture_every=0),
    )
    checkpoints = LocalStore(uri=str(directory / "checkpoints"))
    RayLauncher(replace(CLUSTER, zero_stage=stage), directory).train(task, *data, checkpoints, None)
    averages = final_averages(checkpoints)
    assert averages is not None
    assert set(averages) == {"student", TIME_SAMPLER}
    return averages[TIME_SAMPLER]


def test_the_law_is_learned_the_same_at_every_stage(
    tiny_pipeline: Path, data: tuple[LocalStore, Index], tmp_path: Path
) -> None:
    found = {stage: train(tiny_pipeline, data, tmp_path / str(stage), stage) for stage in (0, 2, 3)}
    start = SteinTimes().start().float()
    assert not torch.allclose(found[2]["table"], start, atol=1e-3)
    for stage in (0, 3):
        assert set(found[stage]) == set(found[2])
        for name, tensor in found[2].items():
            torch.testing.assert_close(found[stage][name], tensor, rtol=1e-3, atol=1e-4)
