"""Every script of `jobs/` at a small size, with and without Ray; what is shipped; Ctrl-C as a terminal sends it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import psutil  # type: ignore[import-untyped]
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from tests.cluster.conftest import ROOT, command, environment, run, script

from raystill.data.local import LocalStore
from raystill.data.shards import list_shards, pack, unpack
from raystill.models.artifact import verify
from raystill.models.pipeline import load_pipeline
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

FIGURES = {
    "type": "object",
    "required": ["frechet", "images_per_s"],
    "properties": {"frechet": {"type": "number", "minimum": 0}, "images_per_s": {"type": "number", "minimum": 0}},
    "additionalProperties": {"type": "number"},
}
STEPS = {"type": "object", "propertyNames": {"pattern": r"^\d+$"}, "additionalProperties": FIGURES}
REPORT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "teacher": {**STEPS, "required": ["1", "2"]},
        "student": {**STEPS, "required": ["1", "2", "4", "8"]},
        "adapter_uri": {"type": "string", "pattern": "^models:/nano-rayflow/1$"},
        "adapter_version": {"type": "integer", "const": 1},
        "picture": {"type": "string"},
        "seconds": {"type": "object", "minProperties": 1, "additionalProperties": {"type": "number", "minimum": 0}},
        "world_size": {"const": 2},
        "zero_stage": {"const": 2},
    },
}
REPORT["required"] = list(REPORT["properties"])


@pytest.fixture(scope="module")
def few(workplace: Path) -> Path:
    """Three shards of 16 pictures."""
    source, target = LocalStore(uri=str(workplace / "samples")), LocalStore(uri=str(workplace / "few"))
    first = list_shards(source)[0].key
    samples = list(unpack(source.read(first), first))
    for i in range(3):
        target.write(f"{i:06d}.tar", pack(samples[16 * i : 16 * (i + 1)]))
    return workplace / "few"


def test_the_demo_reports_what_it_did(workplace: Path, few: Path) -> None:
    done = run(command(job="demo", sample="few"), workplace)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    report = json.loads((workplace / ".raystill" / "demo" / "report.json").read_text())
    jsonschema.validate(report, REPORT)
    assert set(report["teacher"]) == {"1", "2"}
    assert set(report["student"]) == {"1", "2", "4", "8"}
    with Image.open(workplace / report["picture"]) as picture:
        assert picture.width > 6 * 32  # a column for each of the teacher's and the student's step counts
    lines = done.stdout.splitlines()
    for who in ("teacher", "student"):
        for steps, figures in report[who].items():
            row = next(line.split() for line in lines if re.match(rf"{who} +{steps} ", line))
            assert float(row[2]) == pytest.approx(figures["frechet"], abs=1e-3)
            assert float(row[-1]) == pytest.approx(figures["images_per_s"], abs=0.1)
    for shown in (report["adapter_uri"], report["picture"], ".raystill/demo/report.json"):
        assert shown in done.stdout
    commands = lines[lines.index("Next:") + 1 :]
    assert len(commands) >= 2
    assert all(line.startswith("  ") for line in commands)
    assert not secrets_of(workplace) & set(re.findall(r"[\w-]+", done.stdout + done.stderr))


def secrets_of(workplace: Path) -> set[str]:
    """The keys of the embedded store."""
    text = (workplace / ".raystill" / "s3" / "s3cfg.json").read_text()
    keys: dict[str, str] = json.loads(text)["identities"][0]["credentials"][0]
    return set(keys.values())


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
    for stage in ("targets:", "student:", "teacher-samples:", "student-samples:"):
        assert stage in alone.stderr
    monkeypatch.setenv("RAYSTILL_CACHE", str(workplace / "cache"))
    registry = f"sqlite:///{workplace}/.raystill/mlflow.db"
    pulled = pull("models:/plain-rayflow@champion", workplace / "plain-adapter", tracking_uri=registry)
    assert verify(pulled) == verify(workplace / alone.stdout.splitlines()[-1])


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
    assert "targets:" not in done.stderr
    assert "student:" not in done.stderr  # it evaluates what was trained


@pytest.fixture(scope="module")
def grey(workplace: Path) -> str:
    """Two shards of grey pictures, 16 x 16, one of which has no caption."""
    folder, rng = workplace / "grey", np.random.default_rng(0)
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text("" if i == 7 else f"noise number {i}")
    line = [*script("shards"), "folder", "grey", "--out", "grey-shards", "--per-shard", "6", "--allow-empty-caption"]
    built = run(line, workplace)
    assert built.returncode == 0, built.stderr
    assert built.stdout.startswith("2 shards")
    return "grey-shards"


def test_a_pipeline_of_anybodys_grey_pictures(workplace: Path, grey: str) -> None:
    parts = {"autoencoder": ("widths=[8,16]", "channels=1"), "denoiser": ("widths=[16,32]", "text_length=8")}
    trainings = ("training.steps=4", "training.batch_size=4", "training.log_every=2", "training.checkpoint_every=2")
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
    drawn = draw(workplace / "teachers" / "grey", "noise number 3")
    assert drawn.shape == (16, 16, 1)
    again = run(line, workplace)
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
    assert draw(ROOT / "teachers" / "nano", "red heart").shape == (32, 32, 3)
    assert size(ROOT / "teachers" / "nano") <= 16 * MIB


def test_the_shipped_sample_is_small_and_whole() -> None:
    folder = ROOT / "samples" / "noto"
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


STEPS_OF_A_LONG_RUN, ENOUGH = 80, 30


def test_ctrl_c_in_a_terminal_leaves_nothing_behind_and_the_same_line_goes_on(workplace: Path, few: Path) -> None:
    work = workplace / "long-work"  # a folder, so that checkpoints can be seen as they come
    work.mkdir()
    line = command(
        sample="few", work=str(work), model="long-rayflow", training__steps=str(STEPS_OF_A_LONG_RUN),
        training__checkpoint_every="10", training__picture_every="0",
    )  # fmt: skip
    said = interrupted(line, workplace, work)
    assert "go on with the same command" in said
    stopped_at = checkpoint(work)
    assert ENOUGH <= stopped_at < STEPS_OF_A_LONG_RUN
    done = run(line, workplace)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "models:/long-rayflow/1: there was no champion" in done.stdout
    assert "targets:" not in done.stderr
    assert checkpoint(work) == STEPS_OF_A_LONG_RUN
    shown = [float(n) for n in re.findall(r"student:.*?([\d.]+)/[\d.]+ \[", done.stderr)]
    assert min(n for n in shown if n) >= stopped_at  # its progress bar begins at the checkpoint


def interrupted(line: list[str], cwd: Path, work: Path) -> str:
    """Start a job, send Ctrl-C to its whole group once a checkpoint is there; gives what it wrote. Nothing that it
    started may be alive at its end.
    """
    log = cwd / "interrupted.log"
    with log.open("w") as file:
        process = subprocess.Popen(line, cwd=cwd, env=environment(), stderr=file, stdout=file, start_new_session=True)
    try:
        while checkpoint(work) < ENOUGH:
            assert process.poll() is None, log.read_text()[-4000:]
            time.sleep(0.1)
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) > 4  # the store, Ray's own ones, two workers
        os.killpg(process.pid, signal.SIGINT)
        status, said = process.wait(90), log.read_text()
    finally:
        process.kill()  # a test that ran out of time leaves nothing, either: all others end with it
    assert status == 130, said[-4000:]
    _, alive = psutil.wait_procs(family, timeout=5)
    left = [str(p) for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"{left} outlived the job\n{said[-2000:]}"
    return said


def checkpoint(work: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((json.loads(p.read_text())["step"] for p in work.glob("checkpoints/*/latest.json")), default=0)
