"""The loop on lists of batches, and tasks that are stopped and resumed: bit for bit what an uninterrupted run gives."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL.Image import Image
from safetensors.torch import load
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.data.local import LocalStore
from raystill.data.records import pack_row
from raystill.data.shards import pack
from raystill.data.store import Entry, Store, open_store
from raystill.engine.learning_rate import learning_rate
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import NonFiniteError, Optimizer
from raystill.flow.paths import RayPath
from raystill.flow.randomness import RandomStream
from raystill.flow.times import SamplingTimes
from raystill.methods.method import Loss, generator
from raystill.methods.rayflow import RayFlow
from raystill.models.averaging import Average
from raystill.models.fresh import (
    AutoencoderShape,
    DenoiserShape,
    Tokens,
    load_tokenizer,
    save_autoencoder,
    save_pipeline,
    tokens_of,
)
from raystill.models.text import train_tokenizer
from raystill.models.weights import Lora
from raystill.training.distillation import DistillTask
from raystill.training.loop import Learner, Observers, Training, train
from raystill.training.pretraining import AutoencoderTask, DenoiserTask
from raystill.training.task import Place, Task, final_averages, final_key, last_step, run_task

OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_steps=2)
TRAINING = Training(steps=6, lane_size=3, log_every=2, checkpoint_every=2, picture_every=0, average_decay=0.9)
TINY = DenoiserShape(
    widths=(8, 16), groups=4, heads=2, text_width=4, text_layers=1, text_heads=2, text_length=5, vocabulary=600
)


def rng(seed: int) -> RandomStream:
    return RandomStream.of(seed)


class Line:
    """Fits a line to noisy targets; a method small enough to follow by hand."""

    learners = ("line",)
    needs = ("x", "y")

    def __init__(self) -> None:
        self.drawn: list[list[float]] = []

    def turn(self, step: int) -> tuple[str, ...]:
        return self.learners

    def losses(self, networks: Any, batch: Any, rng: RandomStream, step: int) -> dict[str, Loss]:
        noise = rng.normal(batch["y"].shape)
        self.drawn.append(noise.flatten().tolist())
        times = torch.linspace(0.25, 0.75, len(noise), dtype=torch.float64)
        error = networks["line"](batch["x"]) - batch["y"] - 0.1 * noise
        return {"line": Loss(error.square().mean(), {"quality/error": error.detach().abs().mean()}, times)}


def line_batches(spoiled: int = -1) -> list[list[dict[str, Any]]]:
    """Of one lane."""
    made = []
    for i in range(6):
        x = rng(i).normal((3, 2))
        y = x.sum(1, keepdim=True) * (float("nan") if i == spoiled else 1)
        made.append([{"key": [f"{i}-{j}" for j in range(3)], "x": x, "y": y}])
    return made


def line_learner() -> Learner:
    torch.manual_seed(0)
    engine = LocalEngine(nn.Linear(2, 1), OPTIMIZER)
    with engine.trainable() as tensors:
        return Learner(engine, OPTIMIZER, Average(tensors, TRAINING.average_decay))


def weights(learner: Learner) -> dict[str, Tensor]:
    with learner.engine.trainable() as tensors:
        return {name: tensor.clone() for name, tensor in tensors.items()}


def test_a_nan_stops_before_its_update_and_names_step_role_times_and_samples() -> None:
    spoiled, clean = line_learner(), line_learner()
    seen: list[int] = []
    observers = Observers(checkpoint=seen.append)
    pattern = r"the update was not applied \[step 3, role line, times 0\.2500 to 0\.7500, samples 3-0, 3-1, 3-2\]"
    with pytest.raises(NonFiniteError, match=pattern):
        train(Line(), {"line": spoiled}, {}, iter(line_batches(spoiled=3)), TRAINING, observers)
    assert seen == [2]  # step 4 is not checkpointed
    three = iter(line_batches()[:3])
    with pytest.raises(StopIteration):  # the same settings, hence the same learning rates, for three steps
        train(Line(), {"line": clean}, {}, three, TRAINING, Observers())
    for name, tensor in weights(clean).items():
        assert torch.equal(weights(spoiled)[name], tensor)
        assert torch.equal(spoiled.average.values[name], clean.average.values[name])


def test_an_infinite_loss_with_finite_gradients_stops_too() -> None:
    class Infinite(Line):
        def losses(self, networks: Any, batch: Any, rng: RandomStream, step: int) -> dict[str, Loss]:
            return {"line": Loss(networks["line"](batch["x"]).mean() + float("inf"))}

    with pytest.raises(NonFiniteError, match=r"loss inf; .*\[step 0, role line, samples 0-0"):
        train(Infinite(), {"line": line_learner()}, {}, iter(line_batches()), TRAINING, Observers())


def test_randomness_is_a_function_of_seed_lane_and_step() -> None:
    drawn = {
        (seed, rank, step): tuple(generator(seed, rank, step).normal((4,)).tolist())
        for seed in (0, 1, 2**40)
        for rank in (0, 1, 7)
        for step in (0, 1, 10_000)
    }
    assert len(set(drawn.values())) == len(drawn)
    assert drawn == {at: tuple(generator(*at).normal((4,)).tolist()) for at in drawn}


def test_the_loop_hands_each_step_its_own_randomness() -> None:
    runs = {}
    for seed, rank, start in ((0, 0, 0), (0, 0, 2), (0, 1, 0), (1, 0, 0)):
        method = Line()
        settings, batches = replace(TRAINING, seed=seed, lanes=2), iter(line_batches()[start:])
        train(
            method, {"line": line_learner()}, {}, batches, settings, Observers(), rank=rank, world_size=2, start=start
        )
        runs[seed, rank, start] = method.drawn
    whole = runs[0, 0, 0]
    assert whole == [generator(0, 0, step).normal((3,)).tolist() for step in range(6)]
    assert runs[0, 0, 2] == whole[2:]
    for other in (runs[0, 1, 0], runs[1, 0, 0]):
        assert all(a != b for a, b in zip(whole, other, strict=True))


def test_metrics_are_means_over_the_steps_since_the_last_report() -> None:
    every: list[tuple[int, dict[str, float]]] = []
    single: list[tuple[int, dict[str, float]]] = []
    for log_every, seen in ((4, every), (1, single)):
        settings = replace(TRAINING, log_every=log_every, lanes=2)
        observers = Observers(metrics=lambda step, values, seen=seen: seen.append((step, values)))  # type: ignore[misc]
        batches = iter([batch * 2 for batch in line_batches()])
        train(Line(), {"line": line_learner()}, {}, batches, settings, observers)
    assert [step for step, _ in every] == [4, 6]
    for name in ("loss/line", "gradient/line_norm", "quality/error"):
        values = [v[name] for _, v in single]
        assert every[0][1][name] == pytest.approx(sum(values[:4]) / 4)
        assert every[1][1][name] == pytest.approx(sum(values[4:]) / 2)
    assert every[0][1]["time/step_s"] > 0
    seconds = every[0][1]["time/step_s"] + every[0][1]["time/data_wait_s"]
    assert every[0][1]["throughput/images_per_s"] == pytest.approx(2 * 3 / seconds)


class Still(Line):
    """Without noise of its own, so that a lane is a part of a batch."""

    def losses(self, networks: Any, batch: Any, rng: RandomStream, step: int) -> dict[str, Loss]:
        error = networks["line"](batch["x"]) - batch["y"]
        return {"line": Loss(error.square().mean(), {"quality/error": error.detach().abs().mean()})}


def cut(batch: dict[str, Any], lanes: int) -> list[dict[str, Any]]:
    return [{name: values[i::lanes] for name, values in batch.items()} for i in range(lanes)]


def test_lanes_of_a_step_are_one_larger_batch() -> None:
    told: dict[int, list[dict[str, float]]] = {1: [], 3: []}
    learners = {}
    for lanes, seen in told.items():
        learners[lanes] = line_learner()
        observers = Observers(metrics=lambda _step, values, seen=seen: seen.append(values))  # type: ignore[misc]
        settings = replace(TRAINING, lanes=lanes, lane_size=3 // lanes, log_every=1)
        batches = (cut(step[0], lanes) for step in line_batches())
        train(Still(), {"line": learners[lanes]}, {}, batches, settings, observers)
    for name, tensor in weights(learners[1]).items():
        torch.testing.assert_close(weights(learners[3])[name], tensor, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(learners[3].average.values[name], learners[1].average.values[name])
    for one, three in zip(told[1], told[3], strict=True):
        for name in ("loss/line", "gradient/line_norm", "quality/error"):
            assert three[name] == pytest.approx(one[name], rel=1e-5)


def test_a_lane_of_weight_0_counts_for_nothing() -> None:
    """The second of two ranks has one lane of three, and computes it twice."""
    short, alone = line_learner(), line_learner()
    batches = line_batches()
    settings = replace(TRAINING, lanes=3)
    train(Still(), {"line": short}, {}, iter(batches), settings, Observers(), rank=1, world_size=2)
    with alone.engine.trainable():
        for step, (batch,) in enumerate(batches):
            loss = Still().losses({"line": alone.engine.module}, batch, rng(0), step)["line"]
            alone.engine.backward(loss.value * (2 / 3))  # of a mean over both ranks, of which the other gives nothing
            alone.engine.step(learning_rate(OPTIMIZER, step, TRAINING.steps))
    for name, tensor in weights(alone).items():
        assert torch.equal(weights(short)[name], tensor)


def test_observers_are_called_at_their_steps_and_at_the_last() -> None:
    checkpoints: list[int] = []
    pictures: list[int] = []
    settings = replace(TRAINING, steps=5, checkpoint_every=2, picture_every=3)
    observers = Observers(checkpoint=checkpoints.append, picture=pictures.append)
    train(Line(), {"line": line_learner()}, {}, iter(line_batches()), settings, observers)
    assert (checkpoints, pictures) == ([2, 4, 5], [3, 5])


def test_a_run_that_is_asked_to_stop_saves_at_its_next_report_and_ends() -> None:
    checkpoints: list[int] = []
    pictures: list[int] = []
    settings = replace(TRAINING, steps=5, log_every=3, checkpoint_every=2, picture_every=3)
    observers = Observers(checkpoint=checkpoints.append, picture=pictures.append, stop=lambda: True)
    train(Line(), {"line": line_learner()}, {}, iter(line_batches()), settings, observers)
    assert (checkpoints, pictures) == ([2, 3], [])


class StoppedError(Exception):
    """The machine is taken away."""


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("loop") / "teacher"
    torch.manual_seed(0)
    tokenizer = train_tokenizer(
        ["red heart", "cat face"] * 2, TINY.vocabulary, TINY.text_length, directory / "tokenizer"
    )
    shape = AutoencoderShape(widths=(8, 16), groups=4)
    trained = {f"vae.{name}": tensor for name, tensor in shape.build().state_dict().items()}
    save_autoencoder(shape, trained, 0.5, directory / "vae")
    save_pipeline(TINY.unet(4, 8), TINY.text_encoder(tokens_of(tokenizer)), "v_prediction", directory)
    return directory


def fields(name: str, step: int) -> dict[str, Any]:
    """Batch of one step for each task."""
    latent, mean = (rng(1000 * k + step).normal((3, 4, 8, 8)) for k in (1, 2))
    match name:
        case "autoencoder":
            return {"image": rng(step).integers(0, 256, 3 * 8 * 8 * 3).view(3, 8, 8, 3).byte()}
        case "denoiser":
            return {"latent": latent, "tokens": torch.tensor([[1, 3, 4, 8, 8]] * 3)}
        case _:
            return {"x_0": latent, "target_mean": mean, "condition": {"prompt": rng(step).normal((3, 5, 4))}}


def task_of(name: str, teacher: Path, training: Training = TRAINING) -> Task:
    if name == "autoencoder":
        shape = AutoencoderShape(widths=(8, 16), groups=4)
        return AutoencoderTask(shape=shape, optimizer=OPTIMIZER, training=training)
    if name == "denoiser":
        tokens = Tokens(vocabulary=9, start=1, end=8, empty=(1, 8, 8, 8, 8))
        return DenoiserTask(
            tokens=tokens, latent_channels=4, latent_size=8, kind="v_prediction", shape=TINY, optimizer=OPTIMIZER,
            training=training,
        )  # fmt: skip
    method, lora = RayFlow(path=RayPath(sigma=0.2), times=SamplingTimes()), Lora(rank=2, alpha=2.0)
    return DistillTask(teacher=str(teacher), method=method, weights=lora, optimizer=OPTIMIZER, training=training)


def place(store: Store, name: str, stop: int | None = None) -> Place:
    """Where a task runs; with `stop`, the batch of that step never comes."""

    def batches(start: int) -> Iterator[list[dict[str, Any]]]:
        for step in range(start, TRAINING.steps):
            if step == stop:
                raise StoppedError
            yield [fields(name, step)]

    return Place(checkpoints=store, engine=LocalEngine, batches=batches)


def content(store: Store) -> dict[str, bytes]:
    return {entry.key: store.read(entry.key) for entry in store.list()}


@pytest.mark.parametrize("name", ["student", "autoencoder", "denoiser"])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(name: str, teacher: Path, tmp_path: Path) -> None:
    whole, broken = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "broken"))
    task = task_of(name, teacher)
    run_task(task, place(whole, name))
    for stop, saved in ((1, 0), (3, 2), (5, 4)):  # before the first checkpoint, and between two, twice
        with pytest.raises(StoppedError):
            run_task(task, place(broken, name, stop))
        assert last_step(broken) == saved
        assert final_averages(broken, 6) is None
    torch.manual_seed(123)  # the state of the process does not matter
    run_task(task, place(broken, name))
    assert content(broken) == content(whole)
    assert last_step(whole) == 6
    state = {key for key in content(whole) if key.startswith("step-")}
    assert {key.split("/")[0] for key in state} == {"step-0000006"}  # earlier ones are removed
    averages, live = final_averages(whole, 6), load(whole.read(f"step-0000006/{task.name}/state.safetensors"))
    assert averages is not None
    moved = [n for n, tensor in averages[task.name].items() if not torch.equal(tensor, live[f"parameter/{n}"])]
    assert len(moved) > len(averages[task.name]) / 2  # what is left are averages, not the last weights


@pytest.mark.parametrize("name", ["student", "autoencoder", "denoiser"])
def test_activations_that_are_computed_anew_change_no_number(name: str, teacher: Path, tmp_path: Path) -> None:
    stores = {flag: open_store(str(tmp_path / str(flag))) for flag in (False, True)}
    recomputed = []
    for flag, store in stores.items():
        task = task_of(name, teacher, replace(TRAINING, checkpointing=flag))
        torch.manual_seed(0)
        built = task.build(torch.device("cpu")).modules[task.name]
        recomputed.append([m for m in built.modules() if getattr(m, "gradient_checkpointing", False)])
        run_task(task, place(store, name))
    assert not recomputed[0]
    assert recomputed[1]
    assert content(stores[True]) == content(stores[False])


class Seen:
    """A recorder that keeps pictures."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, int]] = []

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Keep nothing."""

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.pictures.append((name, step))
        assert min(picture.size) > 8


@pytest.mark.parametrize("name", ["student", "autoencoder", "denoiser"])
def test_pictures_change_no_number(name: str, teacher: Path, tmp_path: Path) -> None:
    rows = [{"key": str(i), "caption": caption, "image": np.full((8, 8, 3), 80 * i, np.uint8)}
            for i, caption in enumerate(("red heart", "cat face"))]  # fmt: skip
    LocalStore(uri=str(tmp_path / "pictures")).write("000000.tar", pack([pack_row(row) for row in rows]))
    shown: dict[str, dict[str, Any]] = {
        "student": {"picture_captions": ("red heart",)},
        "autoencoder": {"shown": str(tmp_path / "pictures")},
        "denoiser": {"shown": ("red heart", "cat face"), "directory": str(teacher)},
    }
    tokens = tokens_of(load_tokenizer(teacher / "tokenizer"))
    kept, seen = [], Seen()
    for every in (0, 2):
        task: Any = task_of(name, teacher, replace(TRAINING, picture_every=every))
        told = {"tokens": tokens} if name == "denoiser" else {}
        store = open_store(str(tmp_path / str(every)))
        where = replace(place(store, name), recorder=seen)
        run_task(replace(task, **told, **(shown[name] if every else {})), where)
        kept.append(content(store))
    assert {step for _, step in seen.pictures} == {2, 4, 6}
    assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {},
            r"lanes of 3 samples: .*\n.*checkpointing=true computes.*lane_size=1 --set training\.lanes=2: another run",
        ),
        (
            {"checkpointing": True, "lane_size": 8},
            r"\n--set training\.lane_size=4 --set training\.lanes=2: another run",
        ),
        ({"checkpointing": True, "lane_size": 1}, r"\na smaller weights\.rank: another run"),
    ],
)
def test_a_device_without_memory_says_which_settings_need_less(changes: dict[str, Any], message: str) -> None:
    class Large(Line):
        def losses(self, networks: Any, batch: Any, rng: RandomStream, step: int) -> dict[str, Loss]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    with pytest.raises(UserError, match=message):
        train(Large(), {"line": line_learner()}, {}, iter(line_batches()), replace(TRAINING, **changes), Observers())


def test_a_finished_run_is_left_alone(teacher: Path, tmp_path: Path) -> None:
    store, task = open_store(str(tmp_path)), task_of("autoencoder", teacher)
    run_task(task, place(store, "autoencoder"))
    before = content(store)
    run_task(task, place(store, "autoencoder", stop=0))
    assert content(store) == before


def test_a_stop_between_state_and_pointer_resumes_from_the_checkpoint_before(teacher: Path, tmp_path: Path) -> None:
    whole, broken = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "broken"))
    task = task_of("autoencoder", teacher)
    run_task(task, place(whole, "autoencoder"))
    with pytest.raises(StoppedError):
        run_task(task, place(broken, "autoencoder", 3))
    broken.write("step-0000004/averages.safetensors", b"half of a checkpoint")
    run_task(task, place(broken, "autoencoder"))
    assert broken.read(final_key(6)) == whole.read(final_key(6))


def test_the_final_averages_are_there_before_the_pointer_says_so(teacher: Path, tmp_path: Path) -> None:
    # A run that is stopped between the two must not be taken for finished without its result.
    store, task = open_store(str(tmp_path)), task_of("autoencoder", teacher)
    order: list[str] = []
    run_task(task, replace(place(store, "autoencoder"), checkpoints=Watched(uri=str(tmp_path), tell=order.append)))
    assert order.index(final_key(6)) < max(i for i, key in enumerate(order) if key == "latest.json")
    assert json.loads(store.read("latest.json")) == {"step": 6}


@dataclass(frozen=True, kw_only=True)
class Watched(LocalStore):
    """A store that tells what is written."""

    tell: Callable[[str], None]

    def write(self, key: str, data: bytes) -> Entry:
        self.tell(key)
        return LocalStore.write(self, key, data)


def test_ranks_with_different_data_draw_different_noise_and_only_rank_0_writes(teacher: Path, tmp_path: Path) -> None:
    first, second = open_store(str(tmp_path / "0")), open_store(str(tmp_path / "1"))
    task = task_of("autoencoder", teacher, replace(TRAINING, lanes=2))
    told: list[int] = []
    run_task(task, place(first, "autoencoder"))
    run_task(task, replace(place(second, "autoencoder"), rank=1, world_size=2, on_step=told.append))
    assert first.exists(final_key(6))
    assert second.list() == []
    assert told == [1, 2, 3, 4, 5, 6]
