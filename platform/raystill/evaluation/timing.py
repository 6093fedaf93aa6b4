"""Wall seconds of what runs again and again."""

import time
from collections.abc import Callable

import torch


def seconds(call: Callable[[], object], count: int) -> float:
    """Mean wall seconds of a call, after one that is not counted; the device's queue is waited for."""
    call()
    _wait()
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait()
    return (time.perf_counter() - began) / count


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()  # HOST SYNC: of a probe, not of a training
