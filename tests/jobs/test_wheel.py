"""The wheel outside the checkout, where nothing is installed but what the core asks for: one device, plain torch."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import Distribution, distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image
from tests.workplace import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
Typed = Callable[..., subprocess.CompletedProcess[str]]
SMALL = {
    "store": "environment", "sample": "null", "artifacts": "null", "shards": "shipped://samples/noto", "work": "work",
    "targets.shards": "1", "targets.estimator.solver_steps": "1", "training.steps": "2", "training.lanes": "1",
    "training.lane_size": "4", "training.log_every": "1", "training.picture_every": "2", "evaluation.shards": "1",
    "evaluation.pictures": "4", "evaluation.teacher_steps": "[1]", "evaluation.reference_steps": "1",
    "evaluation.student_steps": "[4]", "evaluation.captions": "[\"sun\"]",
}  # fmt: skip


def closure(names: Sequence[str]) -> dict[str, Distribution]:
    """The installed packages that some packages need, themselves among them, by name; none of their extras."""
    found: dict[str, Distribution] = {}
    waiting = [str(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        for line in found[name].requires or []:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(needed.name))
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that is a user's site-packages: the wheel, and links to what its core requires, and no more."""
    place, site = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    source = place / "source"  # setuptools leaves a folder of what it has built, and takes from it what is there
    shutil.copytree(ROOT / "platform", source / "platform", ignore=shutil.ignore_patterns("*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*line, str(place), str(source)], check=True, cwd=place)
    (wheel,) = place.glob("raystill-*.whl")
    with ZipFile(wheel) as opened:
        opened.extractall(site)
    requires = (next(site.glob("raystill-*.dist-info")) / "METADATA").read_text().splitlines()
    needed = [Requirement(line.partition(": ")[2]) for line in requires if line.startswith("Requires-Dist: ")]
    names = [canonicalize_name(n.name) for n in needed if n.marker is None]
    for found in closure(names).values():
        for top in {file.parts[0] for file in found.files or [] if ".." not in file.parts}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))))
    return site


@pytest.fixture
def typed(core: Path, tmp_path: Path) -> Typed:
    """Types a line of `raystill` in an empty directory, where only the core is installed."""

    def ended(*words: str) -> subprocess.CompletedProcess[str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "OMP_NUM_THREADS") if name in os.environ}
        return subprocess.run(
            [sys.executable, "-S", "-m", "raystill.cli", *words], cwd=tmp_path, capture_output=True, text=True,
            check=False, env={**kept, "PYTHONPATH": str(core), "RAYSTILL_CACHE": str(tmp_path / "cache")},
        )  # fmt: skip

    return ended


def test_the_core_distils_and_draws_from_a_wheel(typed: Typed, core: Path, tmp_path: Path) -> None:
    assert not any((core / absent).exists() for absent in ("ray", "deepspeed", "mlflow", "optuna", "tenacity"))
    (tmp_path / "work").mkdir()
    settings = [word for name, value in SMALL.items() for word in ("--set", f"{name}={value}")]
    done = typed("distill", "--local", *settings)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "not registered: MLflow is not installed" in done.stdout
    adapter = done.stdout.splitlines()[-1]
    (run,) = (tmp_path / ".raystill" / "runs").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "FINISHED"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss/student" in row] == [1, 2]
    assert [row["step"] for row in rows if "evaluation/frechet_4" in row] == [2]
    assert list(run.glob("samples/*-2.png"))
    drawn = typed("sample", "a red heart", "--model", adapter, "--steps", "4", "--count", "1", "--out", "heart.png")
    assert drawn.returncode == 0, drawn.stderr[-4000:]
    assert Image.open(tmp_path / "heart.png").size[0] >= 32


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("distill", r"raystill distill needs ray, deepspeed,.* 'raystill\[cluster\]'; or .*--local"),
        ("runs", r"the registry needs mlflow.* pip install 'raystill\[tracking\]'"),
        pytest.param("search", r"search needs .*optuna.* 'raystill\[cluster\]'", marks=pytest.mark.second),
        pytest.param(
            "distill --local", r"store=embedded needs tenacity.* 'raystill\[store\]'; or .*store=environment",
            marks=pytest.mark.second,
        ),
        pytest.param(
            "submit -- job", r"this needs \w+, which is not .* pip install 'raystill\[(tracking|cluster)\]'",
            marks=pytest.mark.second,
        ),
    ],
)  # fmt: skip
def test_a_missing_extra_is_named_with_what_to_type(typed: Typed, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / ".raystill").mkdir()
    (tmp_path / ".raystill" / "mlflow.db").touch()
    done = typed(*line.split())
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
