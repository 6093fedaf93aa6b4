"""Threads are as many as cores are free, and stay what they were where a training goes on."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from raystill.data.local import LocalStore
from raystill.launch import threads
from raystill.launch.threads import PROCESS, VARIABLE, allowed_cores, busy_processors, choose_threads, same_threads


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv(VARIABLE, raising=False)
    choose_threads.cache_clear()
    yield
    choose_threads.cache_clear()
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("allowed", "processors", "busy", "expected"),
    [
        (4, 4, 0.0, 4), (4, 4, 0.6, 3), (4, 4, 2.1, 2), (4, 4, 4.0, 1),
        (4, 64, 30.0, 4),  # a container's quota, on a machine that has others
        (16, 32, 16.0, 16), (16, 32, 20.0, 12),  # two logical processors to a core
    ],
)  # fmt: skip
def test_busy_cores_are_left_to_others(
    monkeypatch: pytest.MonkeyPatch, allowed: int, processors: int, busy: float, expected: int
) -> None:
    monkeypatch.setattr(threads, "allowed_cores", lambda: allowed)
    monkeypatch.setattr(threads, "busy_processors", lambda: busy)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    assert choose_threads() == expected
    assert torch.get_num_threads() == expected
    monkeypatch.setattr(threads, "busy_processors", lambda: 0.0)
    assert choose_threads() == expected  # once for this process


def test_a_number_of_threads_that_is_asked_for_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(7)
    monkeypatch.setenv(VARIABLE, "7")
    assert choose_threads() == 7


def test_a_busy_process_is_seen() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", script]) as busy:
        try:
            time.sleep(0.5)
            assert busy_processors() > 0.5
        finally:
            busy.kill()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ({}, 4),
    ],
)
def test_a_containers_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, files: dict[str, str], expected: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    monkeypatch.setattr(threads, "CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: 8 if logical else 4)
    assert allowed_cores() == expected


def test_a_training_goes_on_with_the_threads_that_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = LocalStore(uri=str(tmp_path))
    torch.set_num_threads(3)
    with same_threads(store):
        assert torch.get_num_threads() == 3
    assert json.loads(store.read(PROCESS)) == {"threads": 3}
    torch.set_num_threads(1)
    with same_threads(store):
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 1
    monkeypatch.setenv(VARIABLE, "1")
    with same_threads(store):
        assert torch.get_num_threads() == 1
    store.write(PROCESS, b"{}")
    with same_threads(store):
        assert torch.get_num_threads() == 1
