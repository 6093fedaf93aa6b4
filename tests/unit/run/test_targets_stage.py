"""The stage that computes targets: what it refuses, what it finds again, and what it says of its speed."""

import json
import logging
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from raystill.config import legacy
from raystill.config.digest import digest
from raystill.config.errors import UserError
from raystill.config.legacy import earlier
from raystill.config.overrides import override
from raystill.data.derive import INDEX
from raystill.data.local import LocalStore
from raystill.data.records import Reading
from raystill.data.shards import Sample, pack
from raystill.data.store import Store
from raystill.launch.launcher import LocalLauncher
from raystill.models.pipeline import load_pipeline
from raystill.models.revision import former_revisions, revision
from raystill.recipes.resolve import resolve
from raystill.run.distill import compute_targets, training_source
from raystill.run.settings import Evaluation, Run, Targets
from raystill.run.validate import validate
from raystill.targets.targets import Assignment, Expectation, Generation, Inversion, start_law_of

# At the revision that targets of version 57a9588 are of, where the estimator has others.
FIRST: dict[str, Any] = {field.name: 1 for field in fields(Generation) if field.name == "revision"}
CPU = LocalLauncher(device=torch.device("cpu"))


@pytest.fixture
def run(tiny_pipeline: Path, tmp_path: Path) -> Run:
    """Three captions in two shards, after one that is held out."""
    source = LocalStore(uri=str(tmp_path / "shards"))
    for name, keys in (("held.tar", ("z",)), ("p000000.tar", ("a", "b")), ("p000001.tar", ("c",))):
        source.write(name, pack(Sample(key=key, members={"txt": b"red heart"}) for key in keys))
    return Run(
        name="tiny",
        shards=source.uri,
        work=str(tmp_path / "work"),
        teacher=str(tiny_pipeline),
        model="tiny",
        reading=Reading(picture_size=16),
        evaluation=Evaluation(shards=1),
        targets=Targets(estimator=Generation(solver_steps=2, guidance=2.0, **FIRST)),
    )


def test_targets_are_computed_once_and_their_rate_is_said_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "raystill")
    store, index = compute_targets(run, CPU)
    assert index.count == 3
    assert "3 targets at " in caplog.text
    assert "4 teacher calls each" in caplog.text
    assert "computed 3 of them at " in caplog.text
    caplog.clear()
    again, found = compute_targets(run, CPU)
    assert (again.uri, found.count) == (store.uri, 3)
    assert "images/s" not in caplog.text
    assert found.identity["targets"]["estimator"] == {"kind": "Generated", "steps": 2, "guidance": 2}


def test_some_shards_may_be_left_out_of_the_training(run: Run) -> None:
    assert compute_targets(override(run, {"targets.shards": 1}), CPU)[1].count == 2
    assert compute_targets(override(run, {"targets.shards": 9}), CPU)[1].count == 3


def test_a_stopped_stage_counts_what_it_computed_itself(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    store, _ = compute_targets(run, CPU)
    for name in (INDEX, "p000001.tar", "p000001.json"):
        store.delete(name)
    caplog.set_level(logging.INFO, "raystill")
    compute_targets(run, CPU)
    assert "3 targets at " in caplog.text
    assert "computed 1 of them at " in caplog.text


def test_targets_of_another_revision_of_the_teacher_are_refused(run: Run) -> None:
    store, index = compute_targets(run, CPU)
    moved = {**json.loads(store.read(INDEX)), "identity": {**index.identity, "teacher": "0123456789abcdef"}}
    store.write(INDEX, json.dumps(moved).encode())
    with pytest.raises(UserError, match=r"teacher is '0123456789abcdef', this run's .* Move them away"):
        compute_targets(run, CPU)


def as_version_1(run: Run, at: Store, teacher: str | None = None) -> Store:
    """The run's targets moved to where version 57a9588 put them, with the index that it wrote."""
    source, index = training_source(run), json.loads(at.read(INDEX))
    of = {"teacher": teacher or revision(Path(run.teacher)), "reading": run.reading, "targets": run.targets}
    then = {**source.contents, "stage": "targets", **earlier(of).form}
    old = LocalStore(uri=f"{run.work}/targets/{digest(then)}")
    for entry in at.list():
        old.write(entry.key, at.read(entry.key))
        at.delete(entry.key)
    old.write(INDEX, json.dumps({"identity": then, "shards": index["shards"]}).encode())
    return old


def test_targets_of_an_earlier_version_are_used_where_they_are(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    own, _ = compute_targets(run, CPU)
    old = as_version_1(run, own)
    caplog.set_level(logging.INFO, "raystill")
    store, index = compute_targets(run, CPU)
    assert (store.uri, index.count) == (old.uri, 3)
    assert f"targets of an earlier version, of the same settings, are used: {old.uri}" in caplog.text
    assert "computed" not in caplog.text
    changed = override(run, {"targets.batch_size": 7, "reading.max_bad_fraction": 0.5})  # knobs, which had counted then
    assert compute_targets(changed, CPU)[0].uri == old.uri
    assert compute_targets(override(run, {"targets.seed": 1}), CPU)[0].uri != old.uri


def test_targets_that_an_earlier_version_had_not_finished_are_finished(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    old = as_version_1(run, compute_targets(run, CPU)[0])
    for name in (INDEX, "p000001.tar", "p000001.json"):
        old.delete(name)
    caplog.set_level(logging.INFO, "raystill")
    assert compute_targets(run, CPU)[0].uri == old.uri
    assert "computed 1 of them at " in caplog.text
    assert compute_targets(run, CPU)[1].count == 3


def test_targets_of_an_earlier_revision_are_named_and_not_used(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = as_version_1(run, compute_targets(run, CPU)[0])
    monkeypatch.setattr(Targets, "revision", 2, raising=False)
    store, index = compute_targets(run, CPU)
    assert (store.uri != old.uri, index.count) == (True, 3)
    assert f"targets of an earlier version are at {old.uri}, but Targets (revision 2) makes other numbers now" in (
        caplog.text
    )
    assert f"rm -r {old.uri}" in caplog.text


def test_a_setting_of_an_earlier_version_is_named_with_what_to_type(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = as_version_1(run, compute_targets(run, CPU)[0])
    fields = tuple(name for name in legacy.FIELDS["Generated"] if name != "guidance")
    monkeypatch.setitem(legacy.FIELDS, "Generated", fields)  # as if it had come later, when it was 3.0
    moved = as_version_1(run, old)
    compute_targets(run, CPU)
    assert f"targets of an earlier version are at {moved.uri}" in caplog.text
    assert "to use them: --set targets.estimator.guidance=3" in caplog.text


def test_stray_files_beside_the_teacher_s_orphan_no_targets(run: Run, tmp_path: Path) -> None:
    teacher = Path(shutil.copytree(run.teacher, tmp_path / "teacher"))
    (teacher / "unet" / ".DS_Store").write_bytes(b"left by a file manager")
    (then,) = former_revisions(teacher)  # it counted once
    run = replace(run, teacher=str(teacher))
    old = as_version_1(run, compute_targets(run, CPU)[0], then)
    assert compute_targets(run, CPU)[0].uri == old.uri


def test_settings_that_the_teacher_cannot_follow_are_refused_on_the_driver(run: Run, tmp_path: Path) -> None:
    asking = replace(run, targets=Targets(estimator=Inversion(solver_steps=1001)))
    with pytest.raises(UserError, match="1001 steps and the teacher's schedule 1000"):
        validate(asking)
    assert not (tmp_path / "work").exists()


def test_a_fitted_start_is_had_from_the_stage_s_result(run: Run, tmp_path: Path) -> None:
    schedule = load_pipeline(run.teacher).schedule
    assert start_law_of(run.targets.estimator, schedule, *compute_targets(run, CPU)).law == "normal"
    blind = replace(run, targets=Targets(estimator=Expectation(solver_steps=2)))
    with pytest.raises(UserError, match="no picture"):
        compute_targets(blind, CPU)


def test_an_estimator_is_chosen_by_name_on_the_command_line() -> None:
    chosen: Run = override(resolve("nano"), {"targets.estimator": "Expectation", "targets.estimator.solver_steps": 5})
    assert chosen.targets.estimator == Expectation(solver_steps=5)
    assert override(resolve("nano"), {"targets.estimator": "Assignment"}).targets.estimator == Assignment()
    assert override(resolve("nano"), {"targets.estimator.rho": 1.5}).targets.estimator == Generation(
        solver_steps=8, rho=1.5
    )
    with pytest.raises(UserError, match="dpm_solver_2m"):
        override(resolve("nano"), {"targets.estimator.solver": "rk4"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets.batch_size": 0}, "targets.batch_size is 0; write 1 or more"),
        ({"method.objective.target": "noise"}, "near sigma = 0 use data or velocity"),
        ({"method.objective.target": "noise", "method.path.sigma": 0.09}, "near sigma = 0 use data or velocity"),
        ({"method.objective.target": "noise", "method.path": "PairedDiffusionPath"}, "near sigma = 0"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_started(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano"), changes).check()


def test_noise_is_a_target_where_a_path_has_some() -> None:
    override(resolve("nano"), {"method.objective.target": "noise", "method.path.sigma": 0.1}).check()
