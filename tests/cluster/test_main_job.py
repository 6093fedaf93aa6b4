"""The main job on real parts at a small size: S3 server, Ray, DeepSpeed, MLflow, registry, pull, plain diffusers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.cluster.conftest import cli, command, environment, run

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

PLAIN = """
import sys, torch, numpy as np
from diffusers import DDIMScheduler, StableDiffusionPipeline
assert not any(name.startswith("raystill") for name in sys.modules)
pipe = StableDiffusionPipeline.from_pretrained("teachers/tiny", dtype=torch.float32, safety_checker=None)
pipe.scheduler = DDIMScheduler.from_pretrained("adapter", subfolder="scheduler")
pipe.load_lora_weights("adapter")
for steps in (1, 2, 4, 8):
    generator = torch.manual_seed(3)
    out = pipe("a red heart", num_inference_steps=steps, guidance_scale=1.0, generator=generator, output_type="latent")
    np.save(f"plain-{steps}.npy", out.images.numpy())
"""


@pytest.fixture(scope="module")
def distilled(workplace: Path) -> str:
    """What the first run of the main job printed."""
    done = run(command(), workplace)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_the_job_registers_a_champion_with_all_that_it_takes_to_sample_it(workplace: Path, distilled: str) -> None:
    assert "models:/nano-rayflow/1: there was no champion" in distilled
    pulled = run(cli("pull", "models:/nano-rayflow@champion", "--to", "adapter"), workplace)
    assert pulled.returncode == 0, pulled.stderr
    card = json.loads((workplace / "adapter" / "adapter.json").read_text())
    assert card["path"] == {"kind": "RayPath", "sigma": 0.0}
    assert card["timesteps"] == {"1": [999], "2": [999, 499], "4": [999, 749, 499, 249], "8": list(range(999, 0, -125))}
    assert set(card["evaluation"]["frechet"]) == {"1", "2", "4", "8"}
    assert card["recipe"]["training"]["steps"] == 6
    unknown = run(cli("pull", "models:/nano-rayflow@best"), workplace)
    assert unknown.returncode == 2
    assert "champion" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_plain_diffusers_draws_the_same_as_raystill(workplace: Path, distilled: str) -> None:
    if not (workplace / "adapter").exists():
        assert run(cli("pull", "models:/nano-rayflow@champion", "--to", "adapter"), workplace).returncode == 0
    plain = run([sys.executable, "-c", PLAIN], workplace)
    assert plain.returncode == 0, plain.stderr
    from raystill.models.adapter import Adapter

    adapter = Adapter(workplace / "adapter", workplace / "teachers" / "tiny")
    for steps in (1, 2, 4, 8):
        ours = adapter.latents(["a red heart"], steps, seed=3).numpy()
        np.testing.assert_allclose(np.load(workplace / f"plain-{steps}.npy"), ours, atol=2e-4, rtol=1e-3)


def test_a_fresh_process_draws_with_the_registered_adapter(workplace: Path, distilled: str) -> None:
    line = cli("sample", "a red heart", "cat face", "--count", "3", "--steps", "2", "--out", "grid.png")
    drawn = run(line, workplace)
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(workplace / "grid.png") as picture:
        assert picture.width > 3 * 32 * 3
        assert picture.height > 2 * 32 * 3
    refused = run(cli("sample", "x", "--steps", "3"), workplace)
    assert refused.returncode == 2
    assert "trained for 1, 2, 4, 8 steps, found 3" in refused.stderr


def test_a_second_run_finds_everything_and_registers_nothing_new(workplace: Path, distilled: str) -> None:
    again = run(command(), workplace)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "models:/nano-rayflow/1: version 1 is the champion already" in again.stdout
    for stage in ("targets:", "teacher-samples:", "student-samples:", "student:"):
        assert stage not in again.stderr  # no progress bar, because nothing was computed


def test_ctrl_c_stops_everything_and_says_how_to_go_on(workplace: Path, distilled: str) -> None:
    line = command(training__steps="4000", training__seed="1")
    process = subprocess.Popen(
        line,
        cwd=workplace,
        env=environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    seen = []
    for text in process.stderr:
        seen.append(text)
        if "distillation ..." in text:
            break
    time.sleep(25)
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) == 130, "".join(seen[-20:]) + rest[-3000:]
    assert "go on with the same command" in rest
    assert not list_processes(str(workplace))


def list_processes(marker: str) -> list[str]:
    """Command lines of processes that mention a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and entry.name != str(os.getpid()):
            try:
                text = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if marker in text:
                found.append(text)
    return found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--set", "method.path.sgima=0.1"], "method.path.sigma"),
        (["--set", "training.steps=many"], "training.steps"),
        (["--set", "teacher=samples"], "not a diffusers pipeline"),
        (["--set", "cluster.workers=64"], "the cluster has"),
        (["--set", "shards=s3://no-such-bucket-here/x", "--set", "sample=null"], "no-such-bucket-here"),
        (["--set", "shards=s3://raystill/empty", "--set", "sample=null"], "no shards under"),
        (["--set", "cluster.zero_stage=7"], "ZeRO has stages"),
        (["--recipe", "nanoo"], "shipped are: nano"),
    ],
)
def test_bad_input_gets_one_clear_line_before_anything_starts(
    workplace: Path, distilled: str, changes: list[str], message: str
) -> None:
    done = run(command(*changes), workplace)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
