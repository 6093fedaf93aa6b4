"""The scripts of `jobs/`: what they print without running anything."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem != "shards")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_job_shows_its_settings(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--show"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    *settings, last = capsys.readouterr().out.splitlines()
    assert last.startswith("# fingerprint ")
    assert sum("=" in line for line in settings) > 20  # texts of a study have several lines
