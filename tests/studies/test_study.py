"""A study of two variants on real parts: measured once, found again, reported."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.data.records import Reading
from raystill.data.shards import list_shards, pack, unpack
from raystill.data.store import open_store
from raystill.flow.importance import GridTimes
from raystill.flow.paths import RayPath
from raystill.flow.times import SamplingTimes
from raystill.methods.lcm import LCM
from raystill.methods.rayflow import RayFlow
from raystill.models.pipeline import teacher_facts
from raystill.models.sampling import Sampling
from raystill.models.weights import Lora
from raystill.run.settings import Evaluation, Run, Targets
from raystill.run.validate import validate
from raystill.targets.targets import Encoding, Generation
from raystill.training.loop import Training
from raystill_studies.gradients import GradientProbe
from raystill_studies.probes import Probe
from raystill_studies.recipes import methods_study, rayflow_study
from raystill_studies.report import launch_study, reach
from raystill_studies.study import Question, Study, Variant, measure_all, read_results

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
NOTES = "`a command`\n\n## What came out\n\nThis.\n\n## sigma\n\nSigma does this and that.\n"
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Measured:
    """A study, measured in two goes."""

    study: Study
    first: dict[str, Any]  # results of the first seed
    untouched: bool  # whether the same line again left them as they were
    text: str  # the report of both seeds

    @property
    def results(self) -> dict[str, Any]:
        return read_results(self.study.results)

    def run(self, question: int, variant: int) -> Any:
        """What was measured of a variant with the first seed."""
        return self.results["runs"][self.study.run_of(self.study.questions[question].variants[variant], 0)[0]]


@pytest.fixture(scope="module")
def measured(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    """Four variants and two seeds on sixteen pictures."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        study = small(folder, tiny_pipeline)
        one = replace(study, seeds=(0,))
        first = measure_all(one, local=True)
        before = study.results.stat().st_mtime_ns
        untouched = measure_all(one, local=True) == first and study.results.stat().st_mtime_ns == before
        study.results.with_suffix(".notes.md").write_text(NOTES)
        yield Measured(study, first, untouched, launch_study(study, local=True))


def small(folder: Path, teacher: Path) -> Study:
    source = open_store("shipped://samples/noto")
    key = list_shards(source)[0].key
    samples = list(unpack(source.read(key), key))[:16]
    for i, part in enumerate((samples[:8], samples[8:])):  # the first one is held out
        open_store(str(folder / "shards")).write(f"00000{i}.tar", pack(part))
    (folder / "work").mkdir()
    base = Run(
        name="small", shards=str(folder / "shards"), work=str(folder / "work"), teacher=str(teacher), model="small",
        reading=Reading(picture_size=16), method=RayFlow(times=SamplingTimes()),
        weights=Lora(rank=2, alpha=2.0, targets=("to_q", "conv1")),
        targets=Targets(estimator=Generation(solver_steps=2)),
        training=Training(steps=4, lane_size=4, log_every=2, checkpoint_every=4, picture_every=0),
        evaluation=Evaluation(shards=1, teacher_steps=(1, 2), reference_steps=2),
    )  # fmt: skip
    variants = tuple(Variant(label=f"sigma {s}", x=s, changes={"method.path": RayPath(sigma=s)}) for s in (0.0, 0.3))
    anchored = Variant(  # the same training, sampled otherwise
        label="anchored", changes={**variants[1].changes, "sampling": Sampling(jump="anchored")}
    )
    times = (
        Variant(label="the first again"),
        Variant(label="grid", changes={"method.times": GridTimes(warmup_steps=2)}),
    )
    questions = (
        Question(title="sigma", variants=variants),
        Question(title="times", variants=times, gradients=True, probes=True),
        Question(title="jumps", variants=(variants[1], anchored), probes=True),
    )
    return Study(
        name="small_study", base=base, questions=questions, seeds=(0, 1), probe=Probe(captions=3, starts=2),
        gradients=GradientProbe(shards=1, instances=2, points=4, timed=1),
    )  # fmt: skip


def test_a_study_measures_each_run_once_and_reports_it_under_every_label(measured: Measured) -> None:
    study, text = measured.study, measured.text
    assert len(measured.results["runs"]) == 8  # four variants and two seeds: the third label is the first variant
    one = measured.run(0, 0)
    assert set(one["student"]) == {"1", "2", "4", "8"}
    assert one["probes"]["lipschitz_1"] > 0
    assert len(one["overlap"]) == 8
    assert one["overlap"][0] > one["overlap"][-1] > 0
    assert re.search(
        r"^- grid: [\d.e+-]+ of the best law's second moment \(1\.2 at most: (met|missed)\)", text, re.MULTILINE
    )
    assert one["probes"]["diversity_4"] > 0
    assert len(one["loss"]) == 2
    assert text.count("±") > 20
    assert len(measured.results["teacher"]["overlap"]) == 8
    assert re.search(r"^\| the teacher \| [\d.]+ \| [\d.]+ \| - \| - \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(r"^\| over sigma 0\.0 \|.*\n.*\n\| sigma 0\.3 \| [\d.]+ ± [\d.e-]+ \|", text, re.MULTILINE)
    assert text.index("`a command`\n\n## What came out\n\nThis.") < text.index("## The teacher")
    assert text.index("## 1. sigma") < text.index("Sigma does this and that.") < text.index("## 2. times")
    assert study.results.with_name("small_study-1.png").stat().st_size > 5000
    assert study.results.with_name("small_study-2-laws.png").stat().st_size > 5000
    assert "![The laws of times](small_study-2-laws.png)" in text
    assert study.results.with_suffix(".md").is_file()


def test_another_sampling_shares_the_training(measured: Measured) -> None:
    ode, anchored = measured.run(2, 0), measured.run(2, 1)
    assert ode["loss"] == anchored["loss"]
    assert ode["student"]["4"]["frechet"] != anchored["student"]["4"]["frechet"]
    assert ode["probes"].keys() - anchored["probes"].keys() == {f"lipschitz_{n}" for n in (1, 2, 4, 8)}


def test_the_gradients_second_moment_is_measured_for_laws_of_times(measured: Measured) -> None:
    again, grid = (measured.run(1, i)["gradients"] for i in range(2))
    assert again["ratio"] == 1  # it draws from its objective
    assert grid["ratio"] > 0
    assert grid["ratio"] != 1
    for one in (again, grid):
        assert 0 < one["oracle"] <= 1
        assert sum(one["best_density"]) / 4 == pytest.approx(1, abs=1e-3)
        assert len(one["density"]) == 4
        assert one["student_s"] > 0
        assert one["law_s"] > 0
    assert "gradients" not in measured.run(0, 1)


def test_a_stopped_study_goes_on_where_it_was(measured: Measured) -> None:
    assert measured.untouched
    assert len(measured.first["runs"]) == 4
    assert {key: measured.results["runs"][key] for key in measured.first["runs"]} == measured.first["runs"]


def test_results_of_another_teacher_are_not_added_to(measured: Measured, tmp_path: Path) -> None:
    study = replace(measured.study, output=str(tmp_path))
    study.results.write_text(json.dumps({"runs": {}, "teacher_revision": "0123"}))
    with pytest.raises(UserError, match=r"small_study.json holds results of the teacher 0123, .* --set output="):
        measure_all(study, local=True)


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


def test_every_variant_of_the_shipped_studies_is_a_run_that_passes_its_checks() -> None:
    study = rayflow_study.run()
    runs = study.runs().values()
    assert len(runs) >= 3 * 25
    assert sum(planned.gradients for planned in runs) >= 3 * 7
    teacher = teacher_facts(located(study.base.teacher))
    for planned in [*runs, *methods_study.run().runs().values()]:
        validate(planned.run, teacher)


def test_a_variant_that_the_teacher_does_not_allow_is_refused_before_anything_starts(
    measured: Measured, tmp_path: Path
) -> None:
    finer = Variant(label="finer", changes={"method": LCM(intervals=24), "targets": Targets(estimator=Encoding())})
    question = Question(title="a grid", variants=(finer,))
    study = replace(measured.study, output=str(tmp_path), questions=(question,))
    with pytest.raises(UserError, match="does not divide the teacher's 1000 times"):
        measure_all(study, local=True)
