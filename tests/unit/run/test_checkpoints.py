"""Trainings go on where an earlier run stopped, whatever was changed that changes no number."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.config.digest import digest
from raystill.config.legacy import earlier
from raystill.config.overrides import override
from raystill.data.derive import Index, Source
from raystill.data.local import LocalStore
from raystill.data.records import Reading
from raystill.data.shards import Sample, pack
from raystill.data.store import Store
from raystill.engine.protocol import Optimizer
from raystill.flow.paths import PairedDiffusionPath
from raystill.flow.times import UniformTimes
from raystill.launch.launcher import LocalLauncher
from raystill.methods.rayflow import RayFlow
from raystill.models.weights import Lora
from raystill.run.checkpoints import checkpoints_at
from raystill.run.distill import checkpoints_of, compute_targets, train_student, untold
from raystill.run.settings import Evaluation, Run, Targets
from raystill.targets.targets import Generation
from raystill.training.loop import Training
from raystill.training.task import averages_after, final_averages, final_key, last_step
from raystill_studies.study import PlannedRun, by_training

CPU = LocalLauncher(device=torch.device("cpu"))
CONSTANT = {"optimizer.decay": "constant"}


@pytest.fixture(scope="module")
def run(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training of four steps on four captions."""
    place = tmp_path_factory.mktemp("checkpoints")
    source = LocalStore(uri=str(place / "shards"))
    for name, keys in (("held.tar", ("z",)), ("p000000.tar", ("a", "b")), ("p000001.tar", ("c", "d"))):
        source.write(name, pack(Sample(key=key, members={"txt": b"red heart"}) for key in keys))
    return Run(
        name="tiny", shards=source.uri, work=str(place / "work"), teacher=str(tiny_pipeline), model="tiny",
        reading=Reading(picture_size=16), targets=Targets(estimator=Generation(solver_steps=2)),
        weights=Lora(rank=2, alpha=2.0, targets=("to_q",)), optimizer=Optimizer(learning_rate=1e-2, warmup_steps=1),
        training=Training(steps=4, lane_size=2, average_decay=0.5), evaluation=Evaluation(shards=1),
    )  # fmt: skip


@pytest.fixture(scope="module")
def targets(run: Run) -> tuple[Store, Index]:
    return compute_targets(run, CPU)


@pytest.fixture
def fresh(run: Run, targets: tuple[Store, Index], tmp_path: Path) -> Run:
    """The same with nothing trained yet, on targets that are there."""
    del targets
    return replace(run, work=str(tmp_path / "work"))


def trained(run: Run, targets: tuple[Store, Index], until: int | None = None) -> Store:
    return train_student(run, *targets, CPU, None, until)


def weights(run: Run, checkpoints: Store) -> dict[str, torch.Tensor]:
    found = final_averages(checkpoints, run.training.steps)
    assert found is not None
    return found["student"]


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def whole(run: Run, targets: tuple[Store, Index], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What four steps without a stop give."""
    elsewhere = replace(run, work=str(tmp_path_factory.mktemp("whole")))
    return weights(run, trained(elsewhere, targets))


def test_a_training_goes_on_after_its_knobs_were_changed(
    fresh: Run, targets: tuple[Store, Index], whole: dict[str, torch.Tensor]
) -> None:
    stopped = trained(fresh, targets, until=2)
    assert (last_step(stopped), final_averages(stopped, 4)) == (2, None)
    changed = override(
        fresh,
        {"training.log_every": 1, "training.checkpoint_every": 1, "training.picture_every": 2, "name": "another",
         "evaluation.captions": ["red heart"], "evaluation.batch_size": 3, "targets.batch_size": 1,
         "reading.max_bad_fraction": 0.9, "cluster.zero_stage": 3, "experiment": "another", "model": "another"},
    )  # fmt: skip
    assert _targets_of(changed, targets) == targets[0].uri
    assert checkpoints_of(changed, targets[0]) == stopped
    assert equal(weights(fresh, trained(changed, targets)), whole)
    assert LocalStore(uri=f"{fresh.work}/checkpoints").folders() == [stopped.uri.rpartition("/")[2]]


def _targets_of(run: Run, targets: tuple[Store, Index]) -> str:
    """Where a run's targets are, in the work prefix that they were computed in."""
    place = targets[0].uri.rpartition("/targets/")[0]
    return compute_targets(replace(run, work=place), CPU)[0].uri


@pytest.mark.parametrize(
    "changes", [{"training.seed": 1}, {"method.path.sigma": 0.1}, {"training.lane_size": 4}, {"training.lanes": 2}]
)
def test_another_training_begins_anew(fresh: Run, targets: tuple[Store, Index], changes: dict[str, Any]) -> None:
    assert checkpoints_of(override(fresh, changes), targets[0]) != checkpoints_of(fresh, targets[0])


def test_another_teacher_is_another_training(fresh: Run, targets: tuple[Store, Index]) -> None:
    work = LocalStore(uri=fresh.work)
    ours, theirs = (checkpoints_at(work, fresh.task, targets[0], teacher=name) for name in ("0123", "4567"))
    assert ours != theirs
    moved = replace(fresh.task, teacher="another/place")  # of the same files
    assert checkpoints_at(work, moved, targets[0], teacher="0123") == ours


def test_more_steps_at_a_constant_rate_go_on(fresh: Run, targets: tuple[Store, Index], tmp_path: Path) -> None:
    four = override(fresh, CONSTANT)
    two = override(four, {"training.steps": 2})
    expected = weights(four, trained(replace(four, work=str(tmp_path / "whole")), targets))
    shorter = trained(two, targets)
    after_two = weights(two, shorter)
    assert final_averages(shorter, 4) is None  # a shorter training's result is not taken for a longer one's
    longer = trained(four, targets)
    assert longer == shorter
    assert equal(weights(four, longer), expected)
    assert trained(two, targets) == shorter
    assert equal(weights(two, shorter), after_two)
    assert last_step(shorter) == 4


def test_fewer_steps_than_were_trained_have_a_folder_of_their_own(
    fresh: Run, targets: tuple[Store, Index], caplog: pytest.LogCaptureFixture
) -> None:
    four = override(fresh, CONSTANT)
    two = override(four, {"training.steps": 2})
    longer = trained(four, targets)
    caplog.set_level(logging.INFO, "raystill")
    shorter = trained(two, targets)
    assert shorter != longer
    assert f"the training of these settings at {longer.uri} is past step 2 already" in caplog.text
    assert (last_step(shorter), last_step(longer)) == (2, 4)
    assert trained(two, targets) == shorter


def test_only_trainings_of_one_place_are_tracked_together(fresh: Run, targets: tuple[Store, Index]) -> None:
    four = override(fresh, CONSTANT)
    two = override(four, {"training.steps": 2})
    assert untold(two, targets[0]) == untold(four, targets[0]) == ("training.steps",)  # two lead to four
    trained(four, targets)
    assert untold(four, targets[0]) == ("training.steps",)
    assert untold(two, targets[0]) == ()  # four are not two
    assert untold(fresh, targets[0]) == ()  # a cosine's first steps depend on its end


def test_more_steps_of_a_cosine_begin_anew_and_say_so(
    fresh: Run, targets: tuple[Store, Index], whole: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    two = override(fresh, {"training.steps": 2})
    finished, stopped = trained(two, targets), trained(override(fresh, {"training.steps": 3}), targets, until=1)
    caplog.clear()
    caplog.set_level(logging.INFO, "raystill")
    longer = trained(fresh, targets)
    assert equal(weights(fresh, longer), whole)
    for steps, place, reached in ((2, finished, "finished"), (3, stopped, "stopped at step 1")):
        assert f"training.steps={steps} at {place.uri}, {reached}. Its cosine schedule ends there" in caplog.text
    assert "--set optimizer.decay=constant" in caplog.text
    caplog.clear()
    trained(fresh, targets)  # it is there
    assert "schedule ends there" not in caplog.text


@pytest.mark.parametrize(("changes", "groups"), [({}, [1, 1]), (CONSTANT, [2])])
def test_processes_of_a_study_do_not_train_in_one_place_at_once(
    fresh: Run, changes: dict[str, Any], groups: list[int]
) -> None:
    four = override(fresh, changes)
    runs = {"a": four, "b": override(four, {"training.steps": 2})}
    planned = {key: PlannedRun(run, probes=False, gradients=False) for key, run in runs.items()}
    assert [len(group) for group in by_training(planned).values()] == groups


@pytest.fixture
def first(fresh: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A training of whose parts none has another revision than the first."""
    for kind in (RayFlow, PairedDiffusionPath, UniformTimes):
        monkeypatch.setattr(kind, "revision", 1, raising=False)
    return replace(fresh, method=RayFlow(path=PairedDiffusionPath(), times=UniformTimes()))


def as_version_1(run: Run, targets: Store, at: Store) -> LocalStore:
    """Checkpoints moved to where version 57a9588 put them, under the names that it gave."""
    then = {**Source.of(targets).contents, **earlier({"task": run.task, "workers": 1}).form}
    old = LocalStore(uri=f"{run.work}/checkpoints/{digest(then)}")
    for entry in at.list():
        name = "final.safetensors" if entry.key == final_key(run.training.steps) else entry.key
        if name != "identity.json":
            old.write(name, at.read(entry.key))
        at.delete(entry.key)
    return old


def test_checkpoints_of_an_earlier_version_are_gone_on_with(
    first: Run, targets: tuple[Store, Index], caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    whole = weights(first, trained(replace(first, work=str(tmp_path / "whole")), targets))
    old = as_version_1(first, targets[0], trained(first, targets, until=2))
    caplog.set_level(logging.INFO, "raystill")
    assert trained(first, targets) == old
    assert f"checkpoints of an earlier version, of the same settings, are used: {old.uri}" in caplog.text
    assert equal(weights(first, old), whole)
    assert checkpoints_of(override(first, {"training.log_every": 3}), targets[0]) == old


def test_a_finished_training_of_an_earlier_version_is_found(first: Run, targets: tuple[Store, Index]) -> None:
    old = as_version_1(first, targets[0], trained(first, targets))
    assert trained(first, targets) == old
    assert averages_after(old, 4) == "step-0000004/averages.safetensors"


def test_checkpoints_of_an_earlier_revision_are_named_and_not_used(
    first: Run, targets: tuple[Store, Index], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = as_version_1(first, targets[0], trained(first, targets, until=2))
    monkeypatch.setattr(RayFlow, "revision", 7)
    assert trained(first, targets) != old
    assert f"checkpoints of an earlier version are at {old.uri}, but RayFlow (revision 7) makes other" in caplog.text
    assert f"rm -r {old.uri}" in caplog.text
