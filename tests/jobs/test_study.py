"""A study of two variants on real parts: measured once, found again, reported."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.data.records import Reading
from raystill.data.shards import list_shards, pack, unpack
from raystill.data.store import open_store
from raystill.data.targets import Generated
from raystill.flow.importance import GridTimes
from raystill.flow.paths import RayPath
from raystill.flow.times import UniformTimes
from raystill.models.student import Sampling
from raystill.orchestration.gradients import GradientProbe
from raystill.orchestration.probes import Probe
from raystill.orchestration.report import launch_study, reach
from raystill.orchestration.run import Evaluation, Run, Targets
from raystill.orchestration.study import Question, Study, Variant, measure_all
from raystill.recipes import rayflow_study
from raystill.training.loop import Training

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def study(tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """Two variants and two seeds on sixteen pictures."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    source = open_store(str(ROOT / "samples" / "noto"))
    key = list_shards(source)[0].key
    samples = list(unpack(source.read(key), key))[:16]
    for i, part in enumerate((samples[:8], samples[8:])):  # the first one is held out
        open_store(str(tmp_path / "shards")).write(f"00000{i}.tar", pack(part))
    (tmp_path / "work").mkdir()
    base = Run(
        name="small", shards=str(tmp_path / "shards"), work=str(tmp_path / "work"), teacher=str(tiny_pipeline),
        model="small",
        reading=Reading(picture_size=16),
        targets=Targets(estimator=Generated(steps=2)),
        training=Training(steps=4, batch_size=4, log_every=2, checkpoint_every=4, picture_every=0),
        evaluation=Evaluation(shards=1, teacher_steps=(1, 2), reference_steps=2),
    )  # fmt: skip
    variants = tuple(Variant(label=f"sigma {s}", x=s, changes={"method.path": RayPath(sigma=s)}) for s in (0.0, 0.3))
    anchored = Variant(  # the same training, sampled otherwise
        label="anchored", changes={**variants[1].changes, "sampling": Sampling(jump="anchored")}
    )
    times = (
        Variant(label="the first again"),
        Variant(label="uniform", changes={"method.times": UniformTimes()}),
        Variant(label="grid", changes={"method.times": GridTimes(warmup_steps=2)}),
    )
    questions = (
        Question(title="sigma", variants=variants, conclusion="Sigma does this and that."),
        Question(title="times", variants=times, gradients=True, probes=True),
        Question(title="jumps", variants=(variants[1], anchored), probes=True),
    )
    return Study(
        name="small_study", base=base, questions=questions, seeds=(0, 1), probe=Probe(captions=3, starts=2),
        gradients=GradientProbe(shards=1, instances=2, points=4, timed=1), text="`a command`",
    )  # fmt: skip


def test_a_study_measures_each_run_once_and_reports_it_under_every_label(study: Study) -> None:
    text = launch_study(study, local=True)
    results = json.loads(study.results.read_text())
    assert len(results["runs"]) == 10  # five variants and two seeds: the third label is the first variant
    one = results["runs"][study.run_of(study.questions[0].variants[0], 0)[0]]
    assert set(one["student"]) == {"1", "2", "4", "8"}
    assert one["probes"]["lipschitz_1"] > 0
    assert len(one["overlap"]) == 8
    assert one["overlap"][0] > one["overlap"][-1] > 0
    assert re.search(
        r"^- grid: [\d.e+]+ of the best law's second moment \(1\.2 at most: (met|missed)\)", text, re.MULTILINE
    )
    assert one["probes"]["diversity_4"] > 0
    assert len(one["loss"]) == 2
    assert text.count("±") > 20
    assert re.search(r"^The teacher's: lipschitz at 2 steps [\d.]+, diversity at 2 steps [\d.]+\.$", text, re.MULTILINE)
    assert "`a command`" in text
    assert "Sigma does this and that." in text
    assert study.results.with_name("small_study-1.png").stat().st_size > 5000
    assert study.results.with_name("small_study-2-laws.png").stat().st_size > 5000
    assert "![The laws of times](small_study-2-laws.png)" in text
    assert study.results.with_suffix(".md").is_file()


def test_another_sampling_shares_the_training(study: Study) -> None:
    results = measure_all(replace(study, seeds=(0,)), local=True)
    ode, anchored = (results["runs"][study.run_of(v, 0)[0]] for v in study.questions[2].variants)
    assert ode["loss"] == anchored["loss"]
    assert ode["student"]["4"]["frechet"] != anchored["student"]["4"]["frechet"]
    assert ode["probes"].keys() - anchored["probes"].keys() == {f"lipschitz_{n}" for n in (1, 2, 4, 8)}


def test_the_gradients_second_moment_is_measured_for_laws_of_times(study: Study) -> None:
    results = measure_all(replace(study, seeds=(0,)), local=True)
    again, uniform, grid = (results["runs"][study.run_of(v, 0)[0]]["gradients"] for v in study.questions[1].variants)
    assert again["ratio"] == uniform["ratio"] == 1  # they draw from their objective
    assert grid["ratio"] > 0
    assert grid["ratio"] != 1
    for one in (again, uniform, grid):
        assert 0 < one["oracle"] <= 1
        assert sum(one["best_density"]) / 4 == pytest.approx(1, abs=1e-3)
        assert len(one["density"]) == 4
        assert one["student_s"] > 0
        assert one["law_s"] > 0
    assert "gradients" not in results["runs"][study.run_of(study.questions[0].variants[1], 0)[0]]


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([5.0] * 4 + [1.0] * 6, 80),
        ([1.0] * 10, 50),
        ([9.0] * 10, None),
        ([3.0] * 5 + [1.0] * 5, 80),
        ([5.0] * 5 + [1.0] * 5, 90),
    ],
)
def test_steps_to_the_final_loss_of_another_run(losses: list[float], expected: float | None) -> None:
    assert reach({"loss": losses, "steps": 100}, {"loss": [7.0] * 5 + [1.8] * 5}) == expected


def test_a_stopped_study_goes_on_where_it_was(study: Study) -> None:
    first = measure_all(replace(study, seeds=(0,)), local=True)
    before = study.results.stat().st_mtime_ns
    assert measure_all(replace(study, seeds=(0,)), local=True) == first
    assert study.results.stat().st_mtime_ns == before
    both = measure_all(study, local=True)
    assert {key: both["runs"][key] for key in first["runs"]} == first["runs"]
    assert len(both["runs"]) == 10


def test_results_of_another_teacher_are_not_added_to(study: Study) -> None:
    measure_all(replace(study, seeds=(0,)), local=True)
    found = json.loads(study.results.read_text())
    study.results.write_text(json.dumps({**found, "teacher_revision": "0123"}))
    with pytest.raises(UserError, match=r"small_study.json holds results of the teacher 0123, .* --set output="):
        measure_all(study, local=True)


def test_every_variant_of_the_shipped_study_is_a_run_that_passes_its_checks() -> None:
    os.chdir(ROOT)
    study = rayflow_study.run()
    runs = study.runs().values()
    assert len(runs) >= 3 * 25
    assert sum(planned.gradients for planned in runs) >= 3 * 7
    for planned in runs:
        planned.run.check()
