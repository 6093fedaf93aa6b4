"""What adapters say of the code that made them."""

import subprocess
from pathlib import Path

import pytest

from raystill.tracking.commit import code_commit


def git(directory: Path, *words: str) -> str:
    line = ["git", "-C", str(directory), "-c", "user.name=a", "-c", "user.email=a@b.c", *words]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout.strip()


def test_a_checkout_is_known_by_its_commit_and_by_edited_files(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert code_commit(tmp_path) == head
    (tmp_path / "a.py").write_text("2\n")
    assert code_commit(tmp_path) == f"{head}-dirty"


def test_files_outside_of_the_package_are_no_edits_of_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / "package").mkdir()
    for name in ("package/a.py", "results.json"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    (tmp_path / "results.json").write_text("2\n")
    assert code_commit(tmp_path / "package") == git(tmp_path, "rev-parse", "HEAD")


def test_outside_of_a_checkout_it_is_what_the_surroundings_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sent = tmp_path / "_ray_pkg_0123abcd"  # where Ray unpacks a submitted checkout
    sent.mkdir()
    monkeypatch.delenv("RAYSTILL_COMMIT", raising=False)
    monkeypatch.chdir(tmp_path)
    assert code_commit(tmp_path) == "unknown"
    monkeypatch.chdir(sent)
    assert code_commit(tmp_path) == "_ray_pkg_0123abcd"
    monkeypatch.setenv("RAYSTILL_COMMIT", "f00d")
    assert code_commit(tmp_path) == "f00d"
    assert capfd.readouterr() == ("", "")  # git's own words reach nobody
