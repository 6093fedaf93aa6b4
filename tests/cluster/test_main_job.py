"""The main job on real parts at a small size: S3 server, Ray, DeepSpeed, MLflow, registry, pull, plain diffusers."""

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
import psutil
import pytest
from mlflow import MlflowClient
from PIL import Image
from tests.workplace import Typed, cli, command, environment, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PLAIN = """
import sys, torch, numpy as np
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
assert not any(name.startswith("raystill") for name in sys.modules)
pipe = StableDiffusionPipeline.from_pretrained("teachers/tiny", dtype=torch.float32, safety_checker=None)
pipe.scheduler = DPMSolverMultistepScheduler.from_pretrained("adapter", subfolder="scheduler")
pipe.load_lora_weights("adapter")
for steps in (2, 3):
    generator = torch.manual_seed(3)
    out = pipe("a red heart", num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="latent")
    np.save(f"plain-{steps}.npy", out.images.numpy())
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


STEPS_OF_THE_RUN, REPORTED, PICTURED = 48, 3, 24
RUN = {  # long enough to be stopped before its first checkpoint
    "training__steps": str(STEPS_OF_THE_RUN), "training__log_every": str(REPORTED),
    "training__checkpoint_every": "1000", "training__picture_every": str(PICTURED),
}  # fmt: skip


@pytest.fixture(scope="module")
def stopped(workplace: Path, few: Path) -> str:
    """The demo, stopped by Ctrl-C in the middle of its training: what it said."""
    said = interrupted(command(job="demo", **RUN), workplace)
    client = MlflowClient(f"sqlite:///{workplace}/.raystill/mlflow.db")
    (experiment,) = (one for one in client.search_experiments() if one.name == "raystill")
    assert [run.info.status for run in client.search_runs([experiment.experiment_id])] == ["KILLED"]
    return said


@pytest.fixture(scope="module")
def demo(workplace: Path, stopped: str) -> subprocess.CompletedProcess[str]:
    """The same line again, to its end; what it registered is there for the tests below."""
    done = run(command(job="demo", **RUN), workplace)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def test_ctrl_c_in_a_terminal_saves_and_leaves_nothing_behind_and_the_same_line_goes_on(
    stopped: str, demo: subprocess.CompletedProcess[str]
) -> None:
    assert "SIGINT: saving a checkpoint first" in stopped
    assert "go on with the same command" in stopped
    assert "targets:" in stopped
    assert "targets:" not in demo.stderr
    resumed = set(re.findall(r"student from step (\d+):", demo.stderr))
    began = int(resumed.pop())
    assert not resumed
    assert 0 < began < STEPS_OF_THE_RUN  # where the first one was stopped, and no checkpoint was due
    assert began % REPORTED == 0
    shown = re.findall(r"student from step \d+:.*?([\d.]+)/([\d.]+) \[", demo.stderr)
    done, of = zip(*((float(done), float(of)) for done, of in shown), strict=True)
    assert set(of) == {STEPS_OF_THE_RUN - began}
    assert done[0] == 0  # earlier steps are not counted into the speed
    assert done[-1] == STEPS_OF_THE_RUN - began
    assert list(done) == sorted(done)  # one bar, which does not begin again after its end


def test_the_demo_reports_what_it_did(workplace: Path, demo: subprocess.CompletedProcess[str]) -> None:
    report = json.loads((workplace / ".raystill" / "demo" / "report.json").read_text())
    jsonschema.validate(report, REPORT)
    assert set(report["teacher"]) == {"1", "2"}
    assert set(report["student"]) == {"1", "2", "4", "8"}
    with Image.open(workplace / report["picture"]) as picture:
        assert picture.width > 6 * 32  # a column for each of the teacher's and the student's step counts
    lines = demo.stdout.splitlines()
    for who in ("teacher", "student"):
        for steps, figures in report[who].items():
            row = next(line.split() for line in lines if re.match(rf"{who} +{steps} ", line))
            assert float(row[2]) == pytest.approx(figures["frechet"], abs=1e-3)
            assert float(row[-1]) == pytest.approx(figures["images_per_s"], abs=0.1)
    for shown in (report["adapter_uri"], report["picture"], ".raystill/demo/report.json"):
        assert shown in demo.stdout
    commands = lines[lines.index("Next:") + 1 :]
    assert len(commands) >= 2
    assert all(line.startswith("  ") for line in commands)
    assert not secrets_of(workplace) & set(re.findall(r"[\w-]+", demo.stdout + demo.stderr))
    assert "Failed to query" not in demo.stderr
    assert "Warning" not in demo.stdout + demo.stderr


def secrets_of(workplace: Path) -> set[str]:
    """The keys of the embedded store."""
    text = (workplace / ".raystill" / "s3" / "s3cfg.json").read_text()
    keys: dict[str, str] = json.loads(text)["identities"][0]["credentials"][0]
    return set(keys.values())


@pytest.fixture(scope="module")
def pulled(workplace: Path, demo: subprocess.CompletedProcess[str]) -> Path:
    """The champion, by the command that a user types."""
    done = run(cli("pull", "models:/nano-rayflow@champion", "--to", "adapter"), workplace)
    assert done.returncode == 0, done.stderr
    return workplace / "adapter"


def test_the_job_registers_a_champion_with_all_that_it_takes_to_sample_it(
    workplace: Path, pulled: Path, typed: Typed
) -> None:
    card = json.loads((pulled / "adapter.json").read_text())
    assert card["recipe"]["method"]["path"] == {"kind": "RayPath", "sigma": 0.0, "end": "schedule"}
    assert card["timesteps"] == {"1": [999], "2": [999, 499], "4": [999, 749, 499, 249], "8": list(range(999, 0, -125))}
    assert set(card["evaluation"]["frechet"]) == {"1", "2", "4", "8"}
    assert card["recipe"]["training"]["steps"] == STEPS_OF_THE_RUN
    unknown = typed(cli("pull", "models:/nano-rayflow@best"), workplace)
    assert unknown.returncode == 2
    assert "champion" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_plain_diffusers_draws_the_same_as_raystill(workplace: Path, pulled: Path) -> None:
    plain = run([sys.executable, "-c", PLAIN], workplace)
    assert plain.returncode == 0, plain.stderr
    from raystill.models.adapter import Adapter

    adapter = Adapter(pulled, workplace / "teachers" / "tiny")
    for steps in (2, 3):  # all others in tests/unit/models
        ours = adapter.latents(["a red heart"], steps, seed=3).numpy()
        np.testing.assert_allclose(np.load(workplace / f"plain-{steps}.npy"), ours, atol=2e-4, rtol=1e-3)


def test_a_fresh_process_draws_with_the_registered_adapter(
    workplace: Path, demo: subprocess.CompletedProcess[str], typed: Typed
) -> None:
    line = cli("sample", "a red heart", "cat face", "--count", "3", "--steps", "2", "--out", "grid.png")
    drawn = run(line, workplace)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(workplace / "grid.png") as picture:
        assert picture.width > 3 * 32 * 3
        assert picture.height > 2 * 32 * 3
    refused = typed(cli("sample", "x", "--steps", "3"), workplace)
    assert refused.returncode == 2
    assert "trained for 1, 2, 4, 8 steps, found 3" in refused.stderr


def test_what_the_job_left_in_the_bucket_belongs_to_it(workplace: Path, pulled: Path, typed: Typed) -> None:
    listed = json.loads(typed(cli("prune", "s3://raystill/work", "--json"), workplace).stdout)
    assert {row["place"].partition("/")[0] for row in listed} == {
        "targets", "checkpoints", "teacher-samples", "student-samples",
    }  # fmt: skip
    assert all("nano" in row["runs"] and row["size"] > 1000 and not row["unneeded"] for row in listed)


def test_a_second_run_finds_everything_and_registers_nothing_new(
    workplace: Path, demo: subprocess.CompletedProcess[str]
) -> None:
    again = run(command(**RUN), workplace)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "models:/nano-rayflow/1: version 1 is the champion already" in again.stdout
    for stage in ("targets:", "teacher-samples:", "student-samples:", "student:"):
        assert stage not in again.stderr  # no progress bar, because nothing was computed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "method.path.sgima=0.1"], "method.path.sigma"),
        (["--set", "training.steps=many"], "training.steps"),
        (["--set", "teacher=samples"], "not a diffusers pipeline"),
        (["--set", "cluster.zero_stage=7"], "ZeRO has stages"),
        (["--recipe", "nanoo"], "there is no recipe 'nanoo'; did you mean nano"),
    ],
)
def test_bad_settings_get_one_clear_line(workplace: Path, changes: list[str], message: str, typed: Typed) -> None:
    done = typed(command(*changes), workplace)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "shards=s3://no-such-bucket-here/x", "--set", "sample=null"], "no-such-bucket-here"),
        (["--set", "shards=s3://raystill/empty", "--set", "sample=null"], "no shards under"),
    ],
)
def test_bad_input_gets_one_clear_line_before_anything_starts(
    workplace: Path, demo: subprocess.CompletedProcess[str], changes: list[str], message: str, typed: Typed
) -> None:
    done = typed(command(*changes), workplace)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.second  # test_placement.py has a run that finds no room, test_train.py the others that do not fit
def test_a_cluster_that_is_too_small_gets_one_clear_line(
    workplace: Path, demo: subprocess.CompletedProcess[str]
) -> None:
    done = run(command("--set", "cluster.workers=64", "--set", "training.lanes=64"), workplace)
    assert done.returncode == 2
    assert "the cluster holds" in done.stderr
    assert "Traceback" not in done.stderr


def interrupted(line: list[str], cwd: Path) -> str:
    """Start a job, send Ctrl-C to its whole group once it trains; gives what it wrote. Nothing that it started may be
    alive at its end.
    """
    log = cwd / "interrupted.log"
    with log.open("w") as file:
        process = subprocess.Popen(line, cwd=cwd, env=environment(), stderr=file, stdout=file, start_new_session=True)
    try:
        while not any(steps_shown(log.read_text())):
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


def steps_shown(text: str) -> list[float]:
    """Steps of the training that its progress bar showed."""
    return [float(n) for n in re.findall(r"student:.*?([\d.]+)/[\d.]+ \[", text)]
