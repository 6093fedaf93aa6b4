"""Wall-clock timing of repeated calls."""

import time
from collections.abc import Callable

import torch


def seconds(call: Callable[[], object], count: int) -> float:
    """Mean wall-clock seconds of a call, after one warm-up call; waits for the work that calls queue on a GPU."""
    call()
    _wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait()
    return (time.perf_counter() - began) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # HOST SYNC: in measurements only, not in training
