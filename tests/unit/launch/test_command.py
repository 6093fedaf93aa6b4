"""What every command does with errors and Ctrl-C: a line for people, an exit status, and how to go on."""

import errno
import logging
import os
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from raystill.launch.command import LEVEL, guarded, worker_log


@pytest.fixture(autouse=True)
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line in a directory with an environment of its own, as the README makes it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv" / "bin" / "python"))
    monkeypatch.setattr(sys, "argv", ["jobs/demo.py", "--set", "name=my run"])


def full(number: int = errno.ENOSPC) -> None:
    raise OSError(number, os.strerror(number), "/data/adapters/x")


def weights(reason: str) -> None:
    raise SafetensorError(f"Error while serializing: {reason}")


def interrupted() -> None:
    raise KeyboardInterrupt


def test_ctrl_c_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(interrupted) == 130
    assert (
        "go on with the same command:\n  .venv/bin/python jobs/demo.py --set 'name=my run'\n" in capsys.readouterr().err
    )
    assert guarded(interrupted, "Start again:") == 130
    assert "Stopped. Start again:\n  .venv/bin/python" in capsys.readouterr().err


def test_a_python_elsewhere_is_named_in_full(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/venv/bin/python")
    guarded(interrupted)
    assert "\n  /opt/venv/bin/python jobs/demo.py" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_line_that_names_it(capsys: pytest.CaptureFixture[str], number: int) -> None:
    assert guarded(lambda: full(number)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: /data/adapters/x: the disk or quota is full.")
    assert line.endswith(".venv/bin/python jobs/demo.py --set 'name=my run'")


def test_a_full_disk_under_weights_is_named_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert guarded(lambda: weights("I/O error: No space left on device (os error 28)")) == 2  # as save_file says it
    assert f"a file below {Path.cwd()}: the disk or quota is full" in capsys.readouterr().err
    with pytest.raises(SafetensorError, match="InvalidHeader"):
        guarded(lambda: weights("InvalidHeader"))


def test_other_errors_of_the_system_are_not_hidden() -> None:
    with pytest.raises(PermissionError):
        guarded(lambda: full(errno.EACCES))


@pytest.mark.parametrize(
    ("asked", "kept"), [("", ["two", "three"]), ("debug", ["one", "two", "three"]), ("x", ["two", "three"])]
)
def test_a_worker_keeps_its_messages_and_shows_its_warnings(
    asked: str, kept: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(LEVEL, asked)
    root = logging.getLogger()
    before = (root.level, [*root.handlers])
    try:
        worker_log(tmp_path / "logs", "student", 3)
        log = logging.getLogger("raystill.somewhere")
        log.debug("one")
        log.info("two")
        log.warning("three")
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
    lines = (tmp_path / "logs" / "student-3.log").read_text().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == kept
    assert all(" raystill.somewhere: " in line for line in lines)
    assert capfd.readouterr().err == "rank 3: three\n"
