"""Settings that do not fit together are refused before anything is started."""

from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.config.overrides import override
from raystill.models.pipeline import check_pipeline
from raystill.orchestration.run import Run
from raystill.recipes.resolve import resolve


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("cluster.zero_stage", 4, "stages 0, 1, 2 and 3"),
        ("store", "cloud", "write environment or embedded"),
        ("training.precision", "float16", "write float32 or bfloat16"),
        ("evaluation.student_steps", (1, 2), "lacks 4"),
        ("evaluation.features", "inception", "there are: alexnet"),
    ],
)
def test_bad_settings_say_what_to_write(path: str, value: object, message: str) -> None:
    run: Run = override(resolve("nano"), {path: value})
    with pytest.raises(UserError, match=message):
        run.check()


def test_sigma_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match="lies in \\[0, 1\\]"):
        override(resolve("nano"), {"method.path.sigma": 1.5})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [("reading.picture_size", 30, "must be a multiple"), ("reading.channels", 1, "set both")],
)
def test_a_pretraining_that_does_not_fit_its_pictures(path: str, value: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano:teacher"), {path: value}).check()


def test_a_teacher_that_is_no_pipeline(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"expected model_index.json in it, found: notes.txt"):
        check_pipeline(tmp_path)
    (tmp_path / "model_index.json").write_text('{"_class_name": "FluxPipeline", "transformer": ["a", "b"]}')
    with pytest.raises(UserError, match="is a FluxPipeline without vae"):
        check_pipeline(tmp_path)
    with pytest.raises(UserError, match="no such directory"):
        check_pipeline(tmp_path / "absent")
