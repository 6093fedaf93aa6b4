"""Scripts of `jobs/` at a small size in one process, without Ray; what is shipped."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from mlflow import MlflowClient
from PIL import Image
from tests.workplace import Typed, cli, command, run, script

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.data.local import LocalStore
from raystill.data.shards import list_shards, unpack
from raystill.models.adapter import Adapter
from raystill.models.artifact import verify
from raystill.models.pipeline import load_pipeline
from raystill.run.prune import SETTLED_S
from raystill.tracking.pull import pull

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

MIB = 2**20
# Plain folders, and a store of the environment that is never asked for.
PLAIN = {
    "shards": "few",
    "sample": "null",
    "store": "environment",
    "artifacts": "null",
    "work": "plain-work",
    "model": "plain-rayflow",
    "experiment": "plain",
}
WITHOUT_RAY = """
import runpy, sys
sys.modules["ray"] = sys.modules["deepspeed"] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def alone(workplace: Path, few: Path) -> subprocess.CompletedProcess[str]:
    """A whole distillation in one process in which neither Ray nor DeepSpeed can be imported."""
    (workplace / PLAIN["work"]).mkdir()
    done = run([sys.executable, "-c", WITHOUT_RAY, *command(**PLAIN)[1:], "--local"], workplace)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_the_core_distils_and_registers_without_ray(
    workplace: Path, alone: subprocess.CompletedProcess[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "models:/plain-rayflow/1: there was no champion" in alone.stdout
    assert re.search(r"^next: raystill sample '?\w.* --model models:/plain-rayflow/1$", alone.stdout, re.MULTILINE)
    for stage in ("targets:", "student:", "teacher-samples:", "student-samples:"):
        assert stage in alone.stderr
    monkeypatch.setenv("RAYSTILL_CACHE", str(workplace / "cache"))
    registry = f"sqlite:///{workplace}/.raystill/mlflow.db"
    pulled = pull("models:/plain-rayflow@champion", workplace / "plain-adapter", tracking_uri=registry)
    assert verify(pulled) == verify(workplace / alone.stdout.splitlines()[-1])


def test_an_adapter_is_refused_on_another_base(workplace: Path, alone: subprocess.CompletedProcess[str]) -> None:
    adapter, base = workplace / alone.stdout.splitlines()[-1], workplace / "teachers" / "tiny"
    other = workplace / "other"
    shutil.copytree(base, other)
    settings = other / "scheduler" / "scheduler_config.json"
    settings.write_text(settings.read_text() + "\n")
    assert Adapter(adapter, base).card.base.revision == load_pipeline(base).revision
    with pytest.raises(UserError, match=r"at revision \w+, and .*other is at \w+; .*--base DIRECTORY"):
        Adapter(adapter, other)
    with pytest.raises(UserError, match=r"base teachers/tiny is not in .*--base DIRECTORY"):
        Adapter(adapter, workplace)


def test_targets_are_found_again(workplace: Path, alone: subprocess.CompletedProcess[str]) -> None:
    done = run([*command(job="targets", **PLAIN), "--local"], workplace)
    assert done.returncode == 0, done.stderr[-3000:]
    found = workplace / done.stdout.strip()
    assert found.parent == workplace / "plain-work" / "targets"
    assert sorted(p.name for p in found.glob("*.tar")) == ["000001.tar", "000002.tar"]  # the first one is evaluated
    assert "targets:" not in done.stderr  # no progress bar, because nothing was computed


def test_an_evaluation_prints_its_spread_over_seeds(workplace: Path, alone: subprocess.CompletedProcess[str]) -> None:
    done = run([*command(job="evaluate", **PLAIN), "--local"], workplace)
    assert done.returncode == 0, done.stderr[-3000:]
    number = r"\d+\.\d\d"
    spread = rf"^(teacher|student) +(\d) steps: {number}, {number}, {number}; mean {number}, range \d+\.\d%$"
    expected = [("teacher", "1"), ("teacher", "2"), *(("student", n) for n in "1248")]
    assert re.findall(spread, done.stdout, re.MULTILINE) == expected
    assert re.search(rf"^the floor, of two sets of the teacher's own 2 steps: {number}$", done.stdout, re.MULTILINE)
    assert "targets:" not in done.stderr
    assert "student:" not in done.stderr  # it evaluates what was trained


def test_a_bench_compares_the_loop_with_bare_steps(workplace: Path, alone: subprocess.CompletedProcess[str]) -> None:
    line = command(job="bench", training__lane_size="2", **PLAIN)
    done = run([*line, "--local", "--set", "method.times=GridTimes"], workplace)  # with a second network to be learned
    assert done.returncode == 0, done.stderr[-3000:]
    setting, *figures, ratio, targets = done.stdout.splitlines()[-6:]
    assert setting.startswith("plain torch in this process, a lane of 2 samples, torch")
    loop, bare, wait = (float(re.findall(r"^\S+ +([\d.]+) ms, median of 8 blocks$", line)[0]) for line in figures)
    assert loop > 0
    assert bare > 0
    assert 0 <= wait < loop
    assert re.fullmatch(r"loop / bare +[\d.]+ median, [\d.]+ to [\d.]+", ratio)
    number = r"[\d.]+"
    median = rf"{number} median, {number} to {number}"
    assert re.fullmatch(rf"targets +{number} images/s, {number} of bare forwards; {median}", targets)


def test_what_a_run_left_belongs_to_it(workplace: Path, alone: subprocess.CompletedProcess[str], typed: Typed) -> None:
    listed = json.loads(typed(cli("prune", PLAIN["work"], "--json"), workplace).stdout)
    rows = {row["place"]: row for row in listed if not row["place"].startswith("bench/")}
    assert {place.partition("/")[0] for place in rows} == {
        "targets", "checkpoints", "teacher-samples", "student-samples",
    }  # fmt: skip
    assert not [row for row in rows.values() if row["unneeded"]]
    (training,) = (row for place, row in rows.items() if place.startswith("checkpoints/"))
    assert training["runs"] == ["nano"]
    assert [rows[place]["runs"] for place in training["made_from"]] == [["nano"]]
    for drawn in (row for place, row in rows.items() if place.startswith("student-samples/")):
        by_teacher, by_student = sorted(drawn["made_from"], key=lambda place: place == training["place"])
        assert by_student == training["place"]
        assert drawn["runs"] == rows[by_teacher]["runs"] == ["nano"]
    copy = workplace / "copy"
    shutil.copytree(workplace / PLAIN["work"], copy)
    shutil.rmtree(copy / "checkpoints")
    yesterday = time.time() - 2 * SETTLED_S
    for file in copy.rglob("*.*"):
        os.utime(file, (yesterday, yesterday))
    done = typed(cli("prune", "copy", "--delete"), workplace)
    assert done.returncode == 0, done.stderr
    assert LocalStore(uri=str(copy)).folders() == ["targets", "teacher-samples"]


@pytest.fixture
def grey(workplace: Path, typed: Typed) -> str:
    """Two shards of grey pictures, 16 x 16, one of which has no caption."""
    folder, rng = workplace / "grey", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("" if i == 7 else f"noise number {i}")
    line = [*script("shards"), "folder", "grey", "--out", "grey-shards", "--per-shard", "6", "--allow-empty-caption"]
    built = typed(line, workplace)
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("2 shards")
    return "grey-shards"


def test_a_pipeline_of_anybodys_grey_pictures(workplace: Path, grey: str, typed: Typed) -> None:
    parts = {"autoencoder": ("widths=[8,16]", "channels=1"), "denoiser": ("widths=[16,32]", "text_length=8")}
    every = (f"training.{name}_every=2" for name in ("log", "checkpoint", "picture"))
    trainings = ("training.steps=4", "training.lane_size=4", *every)
    settings = [
        f"shards={grey}",
        "output=teachers/grey",
        "reading.picture_size=16",
        "reading.channels=1",
        "reading.allow_empty_caption=true",
        *(f"{part}.shape.groups=8" for part in parts),
        *(f"{part}.shape.{value}" for part, values in parts.items() for value in values),
        *(f"{part}.{value}" for part in parts for value in trainings),
    ]
    line = [*script("pretrain"), "--local", *(flag for setting in settings for flag in ("--set", setting))]
    first = run(line, workplace)
    assert first.returncode == 0, first.stdout[-2000:] + first.stderr[-4000:]
    stages = ("pictures:", "autoencoder:", "latents:", "denoiser:")
    assert all(stage in first.stderr for stage in stages)
    trained = load_pipeline(workplace / "teachers" / "grey").revision
    client = MlflowClient(f"sqlite:///{workplace}/.raystill/mlflow.db")
    for part, name in (("autoencoder", "reconstructions"), ("denoiser", "denoiser")):
        experiment = client.get_experiment_by_name("pretraining")
        assert experiment is not None
        (found,) = client.search_runs([experiment.experiment_id], f"attributes.run_name = 'nano-teacher-{part}'")
        pictures = [file.path for file in client.list_artifacts(found.info.run_id, "images")]
        assert {re.findall(r"step\+(\d+)", path)[0] for path in pictures if name in path} == {"2", "4"}
    drawn = draw(workplace / "teachers" / "grey", "noise number 3")
    assert drawn.shape == (16, 16, 1)
    again = typed(line, workplace)
    assert again.returncode == 0, again.stderr[-3000:]
    assert not any(stage in again.stderr for stage in stages)
    assert load_pipeline(workplace / "teachers" / "grey").revision == trained


def draw(directory: Path, caption: str) -> np.ndarray[Any, Any]:
    """One picture in two steps, in [0, 1], shape (height, width, channels), by nothing but diffusers."""
    pipe = StableDiffusionPipeline.from_pretrained(directory, dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe(caption, num_inference_steps=2, generator=torch.manual_seed(0), output_type="np")
    picture: np.ndarray[Any, Any] = drawn.images[0]
    assert np.isfinite(picture).all()
    return picture


def test_the_shipped_teacher_is_small_and_draws() -> None:
    assert draw(located("shipped://teachers/nano"), "red heart").shape == (32, 32, 3)
    assert size(located("shipped://teachers/nano")) <= 16 * MIB


def test_the_shipped_sample_is_small_and_whole() -> None:
    folder = located("shipped://samples/noto")
    assert size(folder) <= 12 * MIB
    assert {"LICENSE", "ATTRIBUTION.md"} < {p.name for p in folder.iterdir()}
    store = LocalStore(uri=str(folder))
    samples = [s for e in list_shards(store) for s in unpack(store.read(e.key), e.key)]
    assert 3000 <= len(samples) <= 4000
    assert len({s.key for s in samples}) == len(samples)
    assert all(s.members["txt"].strip() for s in samples)


def size(folder: Path) -> int:
    """Bytes of all files below."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
