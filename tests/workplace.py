"""What tests of whole jobs share: a newcomer's directory, and the lines that a user types there."""

import os
import runpy
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from raystill.data.local import LocalStore
from raystill.data.shards import list_shards, pack, unpack

ROOT = Path(__file__).parents[1]
SMALL = {
    "training.steps": "6",
    "training.log_every": "2",
    "training.lane_size": "8",
    "training.picture_every": "3",
    "training.checkpoint_every": "3",
    "targets.estimator.solver_steps": "2",
    "evaluation.shards": "1",
    "evaluation.teacher_steps": "[1,2]",
    "evaluation.reference_steps": "2",
    "weights.rank": "4",
    "weights.alpha": "8.0",  # another one than the rank: it must travel with the adapter
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory as a newcomer has one: a small teacher of random weights and two of the sample's shards."""
    import torch  # here and below: after the hook that checks shapes is in place

    from raystill.models.fresh import AutoencoderShape, DenoiserShape, save_autoencoder, save_pipeline, tokens_of
    from raystill.models.text import train_tokenizer

    place = tmp_path_factory.mktemp("main-job")
    torch.manual_seed(0)
    teacher = place / "teachers" / "tiny"
    tokens = tokens_of(train_tokenizer(["red heart", "cat face"] * 4, 600, 12, teacher / "tokenizer"))
    shape, sizes = (
        AutoencoderShape(widths=(16, 16, 16), groups=8),
        DenoiserShape(widths=(16, 32), groups=8, text_length=12),
    )
    vae = shape.build()
    save_autoencoder(shape, vae.state_dict(), 1.0, teacher / "vae")
    save_pipeline(sizes.unet(4, 8), sizes.text_encoder(tokens), "v_prediction", teacher)
    sample = place / "samples"
    sample.mkdir()
    for name in ("000000.tar.gz", "000001.tar.gz"):
        shutil.copy(ROOT / "platform/raystill/shipped/samples/noto" / name, sample)
    yield place
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def few(workplace: Path) -> Path:
    """Three shards of 16 pictures."""
    source, target = LocalStore(uri=str(workplace / "samples")), LocalStore(uri=str(workplace / "few"))
    first = list_shards(source)[0].key
    samples = list(unpack(source.read(first), first))
    for i in range(3):
        target.write(f"{i:06d}.tar", pack(samples[16 * i : 16 * (i + 1)]))
    return workplace / "few"


Typed = Callable[[list[str], Path], subprocess.CompletedProcess[str]]


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Types a line of `jobs/` or of `raystill` in a directory, as `run` does, in this process: a process of its own
    takes seconds to import everything.
    """

    def ended(line: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        for name in set(os.environ) - set(environment()):
            monkeypatch.delenv(name)
        monkeypatch.setenv("RAYSTILL_CACHE", "cache")
        module = line[2] if line[1] == "-m" else None
        monkeypatch.setattr(sys, "argv", line[2:] if module else line[1:])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            runpy.run_module(module, run_name="__main__") if module else runpy.run_path(line[1], run_name="__main__")
        said = capsys.readouterr()
        return subprocess.CompletedProcess(line, int(end.value.code or 0), said.out, said.err)

    terminated = signal.getsignal(signal.SIGTERM)
    yield ended
    signal.signal(signal.SIGTERM, terminated)  # which commands take for themselves


def command(*changes: str, job: str = "distill", **more: str) -> list[str]:
    """The line that a user types."""
    settings = {
        "teacher": "teachers/tiny",
        "sample": "few",
        **SMALL,
        **{k.replace("__", "."): v for k, v in more.items()},
    }
    for name, value in zip(changes[::2], changes[1::2], strict=True):
        if name == "--set":
            path, _, given = value.partition("=")
            settings[path] = given
    changes = tuple(c for pair in zip(changes[::2], changes[1::2], strict=True) if pair[0] != "--set" for c in pair)
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    return [*script(job), "--recipe", "nano", *flags, *changes]


def script(job: str) -> list[str]:
    """The beginning of the line: this Python and one of `jobs/`."""
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py")]


def cli(*arguments: str) -> list[str]:
    """A line of `raystill`."""
    return [sys.executable, "-m", "raystill.cli", *arguments]


def environment() -> dict[str, str]:
    """The user's environment without the test session's own object store."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("AWS_") and k != "MLFLOW_TRACKING_URI"}
    return kept | {"PYTHONPATH": str(ROOT / "platform"), "RAYSTILL_CACHE": "cache"}


def run(line: list[str], cwd: Path, timeout: float = 550) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=timeout, check=False
    )
