"""Settings that do not fit together are refused before anything is started."""

import re
from pathlib import Path

import pytest
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, SchedulerMixin

from raystill.config.errors import UserError
from raystill.config.overrides import override, parse_assignments
from raystill.data.shards import Sample, pack
from raystill.models.counts import wrong_counts
from raystill.models.pipeline import TeacherFacts, check_pipeline
from raystill.models.sampling import NORMAL
from raystill.models.stock import kind_of, schedule_of, stock_sampler
from raystill.recipes import nano_methods
from raystill.recipes.resolve import resolve
from raystill.run.distill import check_inputs
from raystill.run.experiments import prepare_experiment
from raystill.run.settings import Run
from raystill.run.validate import check_teacher


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cluster.zero_stage", 4, "stages 0, 1, 2 and 3"),
        ("store", "cloud", "write environment or embedded"),
        ("training.precision", "float16", "write float32 or bfloat16"),
        ("evaluation.student_steps", (1, 2), r"is \(1, 2\); add 4, in which a student of rayflow is drawn by default"),
        ("evaluation.features", "inception", "there are: alexnet"),
        ("port", 60_000, "from 1 to 55535"),
        ("training.steps", 0, "--set training.steps=1"),
        ("training.lane_size", 0, "--set training.lane_size=1"),
        ("training.lanes", 0, "--set training.lanes=1"),
        ("training.lane_size", 1, "compares the gradients of a lane"),
        ("training.log_every", 0, "--set training.log_every=1"),
        ("training.checkpoint_every", 0, "--set training.checkpoint_every=1"),
        ("training.picture_every", -1, "--set training.picture_every=0"),
        ("optimizer.decay", "linear", "--set optimizer.decay=cosine"),
        ("targets.estimator.solver_steps", 0, "--set targets.estimator.solver_steps="),
        ("targets.shards", 0, "--set targets.shards=1"),
        ("targets.batch_size", 0, "--set targets.batch_size=1"),
        ("evaluation.shards", 0, "--set evaluation.shards=1"),
        ("evaluation.batch_size", 0, "--set evaluation.batch_size=1"),
        ("evaluation.teacher_steps", (0, 4), "every number of steps is 1 or more"),
        ("weights.rank", 0, "--set weights.rank=1"),
        ("cluster.workers", 0, "--set cluster.workers=1"),
    ],
)
def test_bad_settings_say_what_to_write(path: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano"), {path: value}).check()


def facts(scheduler: SchedulerMixin) -> TeacherFacts:
    stock = stock_sampler(scheduler)
    return TeacherFacts(schedule_of(stock), kind_of(stock), {"mid_block": 8}, stock, False, (32, 3), (), False, 4)


BENT, STRAIGHT = facts(DDIMScheduler()), facts(FlowMatchEulerDiscreteScheduler(shift=3.0))


@pytest.mark.parametrize(
    ("recipe", "steps", "teacher", "message"),
    [
        ("nano", (4, 61), BENT, r"has \[61\], in which DPMSolver.* nearest to 61 are 60 and 62: --set .*=\[4, 60\]'$"),
        ("tcd_nano", (3, 4), BENT, r"\[3\], .* a student of tcd beside .* 2 and 4: .*\[2, 4\]' or .*intervals=48$"),
        ("ctm_nano", (4, 12), BENT, r"nearest to 12 are 8 and 16: --set .*=\[4, 8\]' or --set method.intervals=24$"),
        ("lcm_nano", (2, 4), STRAIGHT, r"nearest to 4 are 5 and 2: --set method.intervals=52$"),
    ],
)
def test_step_counts_beside_the_times_of_training_are_refused_with_the_nearest(
    recipe: str, steps: tuple[int, ...], teacher: TeacherFacts, message: str
) -> None:
    run = override(resolve(recipe), {"evaluation.student_steps": steps})
    run.check()
    with pytest.raises(UserError, match=message) as refused:
        check_teacher(run, teacher)
    for advice in re.findall(r"--set '?([^' ]+=(?:\[[^]]*\]|\d+))", str(refused.value)):
        advised = override(run, parse_assignments([advice]))
        advised.check()
        check_teacher(advised, teacher)


def test_every_recipe_s_step_counts_are_right() -> None:
    for name in (name for name in vars(nano_methods) if name.endswith("_nano")):
        run = resolve(name)
        scheduler = run.method.scheduler(BENT.scheduler, run.sampling, NORMAL)
        assert wrong_counts(scheduler, run.evaluation.student_steps, run.method.trained_times(BENT.schedule)) == {}


def test_sigma_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match="lies in \\[0, 1\\]"):
        override(resolve("nano"), {"method.path.sigma": 1.5})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("reading.picture_size", 30, "must be a multiple of 8, such as --set reading.picture_size=32"),
        ("reading.picture_size", 36, r"stock pipelines take multiples of 8.*picture_size=40"),
        ("reading.channels", 1, "set both"),
        ("autoencoder.training.steps", 0, "--set autoencoder.training.steps=1"),
        ("denoiser.training.precision", "float16", "--set denoiser.training.precision=float32"),
        ("denoiser.optimizer.decay", "linear", "--set denoiser.optimizer.decay=cosine"),
        ("cluster.zero_stage", 4, "stages 0, 1, 2 and 3"),
    ],
)
def test_a_pretraining_that_does_not_fit_its_pictures(path: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano:teacher"), {path: value}).check()


def inputs(tmp_path: Path) -> Run:
    work, shards = tmp_path / "work", tmp_path / "shards"
    work.mkdir()
    shards.mkdir()
    (shards / "000000.tar").write_bytes(pack([Sample(key="a", members={"txt": b"cat"})]))
    run: Run = override(resolve("nano"), {"work": str(work), "shards": str(shards), "artifacts": None})
    return run


def test_a_bucket_for_artifacts_that_is_missing_is_found_before_the_work(s3: dict[str, str], tmp_path: Path) -> None:
    run = inputs(tmp_path)
    check_inputs(run)
    with pytest.raises(UserError, match="no bucket 'nobody-made-this'"):
        check_inputs(override(run, {"artifacts": "s3://nobody-made-this/mlflow"}))


def test_an_experiment_whose_files_are_out_of_reach_is_told_before_the_work(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    prepare_experiment(uri, "here")
    told = r"'gone' keeps its files at s3://gone.*no bucket(.|\n)*--set experiment="
    for artifacts in ("s3://gone-with-its-server/mlflow", None):
        with pytest.raises(UserError, match=told):
            prepare_experiment(uri, "gone", artifacts)
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://somewhere.else")
    prepare_experiment(uri, "gone")
    prepare_experiment(None, "without MLflow")


def test_a_teacher_that_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected model_index.json in it, found: notes.txt"):
        check_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}')
    with pytest.raises(UserError, match="is a FluxPipeline; supported are StableDiffusionPipeline"):
        check_pipeline(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        check_pipeline(tmp_path / "absent")
