"""ZeRO under Ray Train with two ranks: a LoRA comes out the same at every stage, and as on one process, of three lanes
whose gradients are accumulated.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.cloudpickle
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from peft import LoraConfig
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

from raystill.config.errors import UserError
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import Engine, NonFiniteError, Optimizer
from raystill.engine.replicated import ReplicatedEngine
from raystill.launch.settings import Cluster
from raystill.training.lanes import share

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

STAGES = (0, 1, 2, 3)
ENGINES: tuple[int | str, ...] = (*STAGES, "replicated")
STEPS, MIDDLE, BATCH, LANES = 4, 2, 6, 3
OPTIMIZER = Optimizer(clip_norm=0.05)


def adapted() -> UNet2DConditionModel:
    """A small UNet with a LoRA of rank 3, whose sizes two ranks do not divide."""
    torch.manual_seed(5)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=7,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    unet.requires_grad_(False).to(memory_format=torch.channels_last)  # as pipelines are loaded
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1"]
    unet.add_adapter(LoraConfig(r=3, lora_alpha=3, target_modules=targets, init_lora_weights="gaussian"))
    return unet


def loss(engine: Engine, step: int, lane: int) -> Tensor:
    """The loss of one lane of a step."""
    rng = torch.Generator().manual_seed(step)
    noisy, target = (torch.randn(BATCH, 4, 8, 8, generator=rng) for _ in range(2))
    text = torch.randn(BATCH, 5, 7, generator=rng)
    its = slice(lane * BATCH // LANES, (lane + 1) * BATCH // LANES)
    found = engine.module(noisy[its], torch.arange(BATCH)[its] * 100, text[its]).sample
    error: Tensor = (found - target[its]).square().mean()
    return error


def train(engine: Engine, steps: range, rank: int = 0, ranks: int = 1) -> list[float]:
    """Accumulate the gradients of a rank's lanes, one of which the second of two computes twice, and update."""
    norms = []
    for step in steps:
        for lane in share(LANES, rank, ranks):
            engine.backward(loss(engine, step, lane.number) * (lane.weight * ranks / LANES))
        norms.append(float(engine.step(0.01)))
    return norms


def values(engine: Engine) -> dict[str, Tensor]:
    with engine.trainable() as tensors:
        return {name: tensor.clone() for name, tensor in tensors.items()}


def raised(call: Callable[[], Any], kind: type[Exception]) -> str:
    """The message of the error that `call` raises on this rank."""
    with pytest.raises(kind) as found:
        call()
    return str(found.value)


def work(config: dict[str, str]) -> None:
    """One rank: trains at every stage in turn, writes what comes out, and then provokes the errors."""
    from raystill.engine.zero import ZeroEngine, agree  # not on the driver: DeepSpeed belongs to the workers

    def make(name: int | str) -> Engine:
        if isinstance(name, int):
            return ZeroEngine(adapted(), OPTIMIZER, name)
        return ReplicatedEngine(adapted(), OPTIMIZER, world_size=ranks)

    torch.set_num_threads(1)
    root, rank, ranks = Path(config["root"]), dist.get_rank(), dist.get_world_size()
    report: dict[str, Any] = {"agree": raised(lambda: agree(f"{rank} steps"), UserError)}
    agree("4 steps")
    for name, following in zip(ENGINES, (*ENGINES[1:], ENGINES[0]), strict=True):
        engine = make(name)
        norms = train(engine, range(MIDDLE), rank, ranks)
        engine.save(root / f"state-{name}" if rank == 0 else root / "another")
        dist.barrier()
        norms += train(engine, range(MIDDLE, STEPS), rank, ranks)
        trained = values(engine)
        resumed = make(following)
        resumed.load(root / f"state-{name}")
        train(resumed, range(MIDDLE, STEPS), rank, ranks)
        save_file(trained, root / f"trained-{name}-{rank}.safetensors")
        save_file(values(resumed), root / f"resumed-{name}-{rank}.safetensors")
        report[f"norms-{name}"] = norms
    for stage in STAGES:
        for kind in ("loss", "gradient"):
            spoiled = make(stage)
            before = values(spoiled)
            poison(spoiled, kind, rank)
            report[f"{kind}-{stage}"] = raised(partial(spoiled.step, 0.01), NonFiniteError)
            report[f"kept-{kind}-{stage}"] = all(torch.equal(before[k], v) for k, v in values(spoiled).items())
    for kind in ("loss", "gradient"):
        spoiled = make("replicated")
        poison(spoiled, kind, rank)
        spoiled.step(0.01)
        report[f"{kind}-replicated"] = raised(partial(spoiled.save, root / "spoiled"), NonFiniteError)
    (root / f"report-{rank}.json").write_text(json.dumps(report))


def poison(engine: Engine, kind: str, rank: int) -> None:
    """A backward whose loss, or only whose gradient, is NaN on rank 1 alone."""
    scalar = loss(engine, STEPS, rank)
    if rank == 1:
        scalar = scalar * torch.nan if kind == "loss" else scalar + (0.0 * scalar).sqrt()
    engine.backward(scalar)


@pytest.fixture(scope="module")
def root(session: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What two ranks wrote; one fit for all stages, because starting the workers takes most of its time."""
    root = tmp_path_factory.mktemp("zero")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    scaling = ScalingConfig(num_workers=session.workers, resources_per_worker=session.worker.amounts)
    run = RunConfig(name="zero", storage_path=str(root / "ray"))
    TorchTrainer(work, train_loop_config={"root": str(root)}, scaling_config=scaling, run_config=run).fit()
    yield root
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def alone() -> tuple[LocalEngine, list[float]]:
    """The same training on one process with the whole batch."""
    engine = LocalEngine(adapted(), OPTIMIZER)
    return engine, train(engine, range(STEPS))


def reports(root: Path) -> list[dict[str, Any]]:
    return [json.loads((root / f"report-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("engine", ENGINES)
def test_trained_as_on_one_process(root: Path, alone: tuple[LocalEngine, list[float]], engine: int | str) -> None:
    expected = values(alone[0])
    start = values(LocalEngine(adapted(), OPTIMIZER))
    assert any(not torch.allclose(start[name], tensor) for name, tensor in expected.items())
    for rank in range(2):
        found = load_file(root / f"trained-{engine}-{rank}.safetensors")
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
    assert reports(root)[0][f"norms-{engine}"] == pytest.approx(alone[1], rel=1e-4)


@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_on_the_next_engine_equals_uninterrupted(root: Path, engine: int | str) -> None:
    trained = load_file(root / f"trained-{engine}-0.safetensors")
    resumed = load_file(root / f"resumed-{engine}-0.safetensors")
    assert set(resumed) == set(trained)
    for name, tensor in trained.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_state_of_two_ranks_resumes_on_one_process(
    root: Path, alone: tuple[LocalEngine, list[float]], engine: int | str
) -> None:
    resumed = LocalEngine(adapted(), OPTIMIZER)
    resumed.load(root / f"state-{engine}")
    assert train(resumed, range(MIDDLE, STEPS)) == pytest.approx(alone[1][MIDDLE:], rel=1e-4)
    for name, tensor in values(alone[0]).items():
        torch.testing.assert_close(values(resumed)[name], tensor, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_on_one_rank_stops_every_rank_before_the_update(root: Path, stage: int, kind: str) -> None:
    for report in reports(root):
        assert "the update was not applied" in report[f"{kind}-{stage}"]
        assert report[f"kept-{kind}-{stage}"]
        if kind == "loss":
            assert "on ranks [1]" in report[f"{kind}-{stage}"]


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_on_one_rank_of_a_replicated_engine_is_in_no_rank_s_state(root: Path, kind: str) -> None:
    for report in reports(root):
        assert "not finite since the last checkpoint" in report[f"{kind}-replicated"]
    assert not (root / "spoiled").exists()


def test_disagreement_is_raised_on_every_rank(root: Path) -> None:
    for rank, report in enumerate(reports(root)):
        assert f"ranks [1] disagree with rank 0; rank {rank} has {rank} steps" in report["agree"]
