"""Tasks that go on from checkpoints: after a change that is cosmetic, from damaged ones; and in bfloat16."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.data.store import Store, open_store
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import Engine, Optimizer
from raystill.methods.method import Batch
from raystill.methods.rayflow import RayFlow
from raystill.models.weights import Lora
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import Place, final_averages, final_key, last_step, run_task

TRAINING = Training(steps=6, lane_size=3, log_every=1, checkpoint_every=2, picture_every=0, average_decay=0.9)
NEWEST = "step-0000004"
FINAL = final_key(TRAINING.steps)


class StoppedError(Exception):
    """The machine is taken away."""


class Losses:
    """A recorder of the student's losses."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.seen[step] = values["loss/student"]

    def picture(self, name: str, picture: Image, step: int) -> None:
        raise AssertionError(f"no picture was asked for, got {name} at {step}")


@pytest.fixture
def task(tiny_pipeline: Path) -> DistillTask:
    """RayFlow with its learned law, a second role."""
    return DistillTask(
        teacher=str(tiny_pipeline), method=RayFlow(), weights=Lora(rank=2, alpha=2.0, targets=("to_q",)),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2), training=TRAINING,
    )  # fmt: skip


def fields(step: int) -> dict[str, Any]:
    """Batch of one step."""
    x_0, mu = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1000 * k + step)) for k in (1, 2))
    text = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(step))
    return {"x_0": x_0, "target_mean": mu, "condition": {"prompt": text}}


def place(store: Store, stop: int | None = None) -> Place:
    """Where a task runs; with `stop`, the batch of that step never comes."""

    def batches(start: int) -> Iterator[Sequence[Batch]]:
        for step in range(start, TRAINING.steps):
            if step == stop:
                raise StoppedError
            yield [fields(step)]

    return Place(checkpoints=store, engine=LocalEngine, batches=batches)


@pytest.fixture
def broken(task: DistillTask, tmp_path: Path) -> Store:
    """Checkpoints of a training that stopped in its sixth step: the newest is of the fourth."""
    store = open_store(str(tmp_path / "broken"))
    with pytest.raises(StoppedError):
        run_task(task, place(store, stop=5))
    assert last_step(store) == 4
    return store


@pytest.mark.parametrize("changes", [{"log_every": 3}, {"picture_every": 2}, {"checkpoint_every": 5}])
def test_a_training_goes_on_after_a_change_of_what_is_reported(
    task: DistillTask, broken: Store, changes: dict[str, Any], tmp_path: Path
) -> None:
    whole, begun = open_store(str(tmp_path / "whole")), list[int]()
    run_task(task, place(whole))
    going_on = place(broken)

    def batches(start: int) -> Iterator[Sequence[Batch]]:
        begun.append(start)
        return going_on.batches(start)

    run_task(replace(task, training=replace(TRAINING, **changes)), replace(going_on, batches=batches))
    assert begun == [4]
    assert {e.key: broken.read(e.key) for e in broken.list()} == {e.key: whole.read(e.key) for e in whole.list()}


def test_a_checkpoint_without_a_pointer_to_it_is_not_read(task: DistillTask, broken: Store, tmp_path: Path) -> None:
    whole = open_store(str(tmp_path / "whole"))
    run_task(task, place(whole))
    state = broken.read(f"{NEWEST}/student/state.safetensors")
    broken.write("step-0000006/student/state.safetensors", state[: len(state) // 2])
    run_task(task, place(broken))
    assert broken.read(FINAL) == whole.read(FINAL)
    assert {e.key for e in broken.list()} == {e.key for e in whole.list()}


def cut(store: Store, key: str) -> None:
    data = store.read(key)
    store.write(key, data[: len(data) // 2])


DAMAGES: dict[str, tuple[str, Callable[[Store, str], object]]] = {
    "state cut": (f"{NEWEST}/student/state.safetensors", cut),
    "state missing": (f"{NEWEST}/student/state.safetensors", lambda store, key: store.delete(key)),
    "progress cut": (f"{NEWEST}/student/state.json", cut),
    "progress missing": (f"{NEWEST}/student/state.json", lambda store, key: store.delete(key)),
    "averages cut": (f"{NEWEST}/averages.safetensors", cut),
    "averages missing": (f"{NEWEST}/averages.safetensors", lambda store, key: store.delete(key)),
    "pointer cut": ("latest.json", cut),
    "pointer to nothing": ("latest.json", lambda store, key: store.write(key, b'{"step": 5}')),
    "pointer without a step": ("latest.json", lambda store, key: store.write(key, b"[]")),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_checkpoint_is_named_with_what_to_type(what: str, task: DistillTask, broken: Store) -> None:
    key, damage = DAMAGES[what]
    damage(broken, key)
    with pytest.raises(UserError, match="the checkpoint is damaged or incomplete") as refused:
        run_task(task, place(broken))
    said = str(refused.value)
    named = "step-0000005/student" if what == "pointer to nothing" else key
    assert f"{broken.uri}/{named.partition('/state')[0]}" in said
    assert said.endswith(f"begins the training anew: rm -r {broken.uri}")
    assert "tmp" not in said.replace(broken.uri, "")  # nobody knows the copy that was read


def test_damaged_final_averages_are_named(task: DistillTask, tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    run_task(task, place(store))
    cut(store, FINAL)
    with pytest.raises(UserError, match=rf"{FINAL}: the checkpoint is damaged or incomplete \(SafetensorError: "):
        final_averages(store, TRAINING.steps)


def test_bfloat16_activations_train_float32_weights_near_the_same_losses(task: DistillTask, tmp_path: Path) -> None:
    losses: dict[str, list[float]] = {}
    trained: dict[str, dict[str, Tensor]] = {}
    for precision in ("float32", "bfloat16"):
        kept: dict[str, nn.Module] = {}

        def engine(module: nn.Module, optimizer: Optimizer, kept: dict[str, nn.Module] = kept) -> Engine:
            kept["student"] = module
            return LocalEngine(module, optimizer)

        seen, store = Losses(), open_store(str(tmp_path / precision))
        here = replace(place(store), engine=engine, recorder=seen)
        run_task(replace(task, training=replace(TRAINING, precision=precision)), here)
        assert {parameter.dtype for parameter in kept["student"].parameters()} == {torch.float32}
        averages = final_averages(store, TRAINING.steps)
        assert averages is not None
        losses[precision], trained[precision] = list(seen.seen.values()), averages["student"]
    assert len(losses["bfloat16"]) == TRAINING.steps
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bfloat16"] != losses["float32"]  # 8 bits of mantissa leave a trace
    assert {tensor.dtype for tensor in trained["bfloat16"].values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in trained["bfloat16"].values())
