"""The trace of a few steps, where it is asked for."""

import json
from pathlib import Path

import pytest
import torch

from raystill.training.profiling import PROFILE, profiled


def steps(place: Path, count: int) -> None:
    seen: list[int] = []
    with profiled(place, seen.append) as stepped:
        for step in range(count):
            torch.ones(30, 30) @ torch.ones(30, 30)
            stepped(step)
    assert seen == list(range(count))


def test_some_steps_are_traced_and_their_split_is_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROFILE, "1")
    steps(tmp_path / "profiles" / "student-0", 9)
    trace = json.loads((tmp_path / "profiles" / "student-0.json").read_text())
    products = [event for event in trace["traceEvents"] if event.get("name") == "aten::mm"]
    assert len(products) == 3
    assert "aten::mm" in (tmp_path / "profiles" / "student-0.txt").read_text()


def test_nothing_is_traced_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PROFILE, raising=False)
    steps(tmp_path / "profiles" / "student-0", 9)
    assert not (tmp_path / "profiles").exists()
