"""Distillation with a learned law of times: a second role with its own optimizer, checkpoint and picture."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL.Image import Image
from torch import Tensor, nn

from raystill.data.store import Store, open_store
from raystill.engine.local import LocalEngine
from raystill.engine.protocol import Engine, Optimizer
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import GridTimes, LearnedTimes, SecondMomentTimes
from raystill.flow.stein import SteinTimes
from raystill.flow.times import SamplingTimes
from raystill.methods.lcm import LCM
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, TARGET, TIME_SAMPLER
from raystill.methods.rayflow import RayFlow
from raystill.methods.rectified import RectifiedDiffusion
from raystill.methods.reflow import Reflow
from raystill.methods.table import METHODS, Distilling
from raystill.methods.tcd import TCD
from raystill.models.averaging import Average
from raystill.models.weights import Lora
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.pictures import LawPicture, typical_density
from raystill.training.task import Place, final_averages, last_step, run_task

TRAINING = Training(steps=6, lane_size=3, log_every=1, checkpoint_every=2, picture_every=3, average_decay=0.9)
OPTIMIZER = Optimizer(learning_rate=1e-2, warmup_steps=2)
LEARNED: list[SecondMomentTimes | GridTimes | SteinTimes] = [
    SecondMomentTimes(warmup_steps=2), GridTimes(warmup_steps=2), SteinTimes(warmup_steps=2),
]  # fmt: skip


class StoppedError(Exception):
    """The machine is taken away."""


class Seen:
    """What rank 0 reports."""

    def __init__(self) -> None:
        self.pictures: list[tuple[str, int]] = []
        self.values: dict[int, Mapping[str, float]] = {}

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        self.values[step] = values

    def picture(self, name: str, picture: Image, step: int) -> None:
        self.pictures.append((name, step))


def fields(step: int) -> dict[str, Any]:
    x_0, mu = (torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1000 * k + step)) for k in (1, 2))
    text = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(step))
    return {"x_0": x_0, "target_mean": mu, "condition": {"prompt": text}}


def place(store: Store, stop: int | None = None, seen: Seen | None = None) -> Place:
    """Where a task runs; with `stop`, the batch of that step never comes."""

    def batches(start: int) -> Iterator[list[dict[str, Any]]]:
        for step in range(start, TRAINING.steps):
            if step == stop:
                raise StoppedError
            yield [fields(step)]

    return Place(checkpoints=store, engine=LocalEngine, batches=batches, recorder=seen)


@pytest.fixture(params=LEARNED, ids=lambda times: type(times).__name__)
def task(request: pytest.FixtureRequest, tiny_pipeline: Path) -> DistillTask:
    return DistillTask(
        teacher=str(tiny_pipeline), method=RayFlow(times=request.param),
        weights=Lora(rank=2, alpha=2.0, targets=("to_q",)),
        optimizer=OPTIMIZER, training=TRAINING,
    )  # fmt: skip


def content(store: Store) -> dict[str, bytes]:
    return {entry.key: store.read(entry.key) for entry in store.list()}


def test_a_resumed_law_equals_an_uninterrupted_one_bit_for_bit(task: DistillTask, tmp_path: Path) -> None:
    whole, broken = open_store(str(tmp_path / "whole")), open_store(str(tmp_path / "broken"))
    run_task(task, place(whole))
    for stop, saved in ((3, 2), (5, 4)):
        with pytest.raises(StoppedError):
            run_task(task, place(broken, stop))
        assert last_step(broken) == saved
    torch.manual_seed(123)  # the state of the process does not matter
    run_task(task, place(broken))
    assert content(broken) == content(whole)
    averages = final_averages(whole, task.training.steps)
    assert averages is not None
    assert set(averages) == {"student", TIME_SAMPLER}
    assert isinstance(task.method, RayFlow)
    times = task.method.times
    assert isinstance(times, LearnedTimes)
    network = times.network(4)
    assert set(averages[TIME_SAMPLER]) == set(network.state_dict())
    v = midpoints(50)
    assert not torch.allclose(
        typical_density(times, averages[TIME_SAMPLER], 4, v),
        typical_density(times, network.state_dict(), 4, v),
    )


def test_the_law_has_its_own_optimizer_and_is_pictured_and_measured(task: DistillTask, tmp_path: Path) -> None:
    asked: list[Optimizer] = []
    seen = Seen()

    def engine(module: nn.Module, optimizer: Optimizer) -> Engine:
        asked.append(optimizer)
        return LocalEngine(module, optimizer)

    run_task(task, replace(place(open_store(str(tmp_path)), seen=seen), engine=engine))
    assert asked == [OPTIMIZER]  # the law has an engine of its own kind
    built = task.build(torch.device("cpu"))
    assert built.small == {TIME_SAMPLER}
    own = built.optimizers[TIME_SAMPLER]
    assert isinstance(task.method, RayFlow)
    assert isinstance(task.method.times, LearnedTimes)
    assert (own.learning_rate, own.decay) == (task.method.times.learning_rate, "constant")
    assert seen.pictures == [("times/law", 3), ("times/law", 6)]
    for step, values in seen.values.items():
        assert values["loss/time_sampler_deviance"] >= 0
        assert values["gradient/time_sampler_norm"] > 0
        assert 0.1 < values["times/effective_share"] < 1 + 1e-9
        assert (values["times/weight_mean"] == 1) == (step <= 2)  # the warm-up


def test_a_fixed_law_is_no_role(tiny_pipeline: Path) -> None:
    built = DistillTask(teacher=str(tiny_pipeline), method=RayFlow(times=SamplingTimes())).build(torch.device("cpu"))
    assert list(built.modules) == list(built.method.learners) == ["student"]
    assert (built.optimizers, built.pictures) == ({}, {})


def test_a_law_s_picture_keeps_the_curves_before() -> None:
    times = GridTimes()
    picture = LawPicture(times, 4)
    averages = {TIME_SAMPLER: Average(times.network(4).state_dict(), 0.5)}
    one = picture(averages, 100)
    averages[TIME_SAMPLER].values["table"] += torch.linspace(0, 3, 10)
    two = picture(averages, 200)
    assert list(picture.drawn) == [100, 200]
    assert picture.drawn[100] == pytest.approx([1.0] * 64)
    rising = picture.drawn[200]
    assert rising == sorted(rising)
    assert one.size == two.size
    assert one.tobytes() != two.tobytes()


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
def test_every_method_resumes_as_if_it_had_not_stopped(
    method: type[Distilling], tiny_pipeline: Path, tmp_path: Path
) -> None:
    task = DistillTask(
        teacher=str(tiny_pipeline), method=method(),
        weights=Lora(rank=2, alpha=2.0, targets=("to_q",)),
        optimizer=OPTIMIZER, training=TRAINING,
    )  # fmt: skip
    _check_resumes(task, tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        Lightning(stages=(4, 2, 1), first=8, stage_steps=2),
        TCD(segments=(8, 4, 2), stage_steps=2),
        RectifiedDiffusion(consistency_from=3),
        Reflow(one_step_from=3),
    ],
    ids=lambda one: one.name,
)
def test_a_training_resumes_over_the_edges_of_its_stages(
    method: Distilling, tiny_pipeline: Path, tmp_path: Path
) -> None:
    task = DistillTask(
        teacher=str(tiny_pipeline), method=method, weights=Lora(rank=2, alpha=2.0, targets=("to_q",)),
        optimizer=OPTIMIZER, training=TRAINING,
    )  # fmt: skip
    assert method.last_stage[1] < TRAINING.steps
    _check_resumes(task, tmp_path)


def test_a_target_network_follows_the_student_and_resumes(tiny_pipeline: Path, tmp_path: Path) -> None:
    task = DistillTask(
        teacher=str(tiny_pipeline), method=LCM(target_decay=0.5), weights=Lora(rank=2, alpha=2.0, targets=("to_q",)),
        optimizer=OPTIMIZER, training=TRAINING,
    )  # fmt: skip
    averages = _check_resumes(task, tmp_path)
    assert set(averages) == {STUDENT, TARGET}
    assert set(averages[STUDENT]) == set(averages[TARGET])
    torch.manual_seed(TRAINING.seed)
    built = task.build(torch.device("cpu"))
    fresh = built.followers[TARGET].tensors
    assert all(torch.equal(fresh[name], p) for name, p in built.modules[STUDENT].named_parameters() if name in fresh)
    assert any(not torch.equal(fresh[name], tensor) for name, tensor in averages[TARGET].items())
    assert not [p for p in built.followers[TARGET].module.parameters() if p.requires_grad]


def _check_resumes(task: DistillTask, directory: Path) -> dict[str, dict[str, Tensor]]:
    """Train whole, and stopped in the middle: the same to the bit; returns the averages."""
    whole, broken = open_store(str(directory / "whole")), open_store(str(directory / "broken"))
    run_task(task, place(whole))
    with pytest.raises(StoppedError):
        run_task(task, place(broken, 3))
    torch.manual_seed(123)  # the state of the process does not matter
    run_task(task, place(broken))
    assert content(broken) == content(whole)
    averages = final_averages(whole, task.training.steps)
    assert averages is not None
    return averages
