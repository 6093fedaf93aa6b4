"""How many threads this process computes with: as many as cores are free, and as before where a training goes on."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

import psutil
import torch

from raystill.data.store import Store

log = logging.getLogger(__name__)
VARIABLE = "OMP_NUM_THREADS"  # environment variable of the number of threads, for OpenMP and so for torch
PROCESS = "process.json"  # key in a checkpoint store: how the process that began the training computed
WATCHED_S = 0.25  # seconds over which other processes are watched
CGROUPS = Path("/sys/fs/cgroup")


@cache
def choose_threads() -> int:
    """Set torch to a thread for each core that is free, once for this process, and say so; return their number. With
    more, each operation would wait for a thread that waits for a core. OMP_NUM_THREADS stays where it is set.
    """
    if os.environ.get(VARIABLE):
        return torch.get_num_threads()
    allowed, processors = allowed_cores(), len(os.sched_getaffinity(0))
    threads = max(1, min(allowed, round(processors - busy_processors())))
    torch.set_num_threads(threads)
    busy = f", of which others use {allowed - threads}" if threads < allowed else ""
    count = f"{threads} thread{'s' * (threads > 1)}"
    log.info("%s on %d cores%s; another number: %s=N before the command", count, allowed, busy, VARIABLE)
    return threads


def allowed_cores() -> int:
    """The number of physical cores that this process may use, by its affinity and its container's quota."""
    cores = min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or os.cpu_count() or 1)
    quota = _quota()
    return cores if quota is None else max(1, min(cores, round(quota)))


def busy_processors() -> float:
    """The number of logical processors that others keep busy, among those that this process may use."""
    shares: list[float] = psutil.cpu_percent(WATCHED_S, percpu=True)
    return sum(share for core, share in enumerate(shares) if core in os.sched_getaffinity(0)) / 100


def _quota() -> float | None:
    """The cores of a container's quota; None where there is none."""
    with suppress(OSError, ValueError):
        quota, period = (CGROUPS / "cpu.max").read_text().split()
        return None if quota == "max" else float(quota) / float(period)
    with suppress(OSError, ValueError):
        quota, period = ((CGROUPS / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if float(quota) < 0 else float(quota) / float(period)
    return None


def _noted(checkpoints: Store) -> int:
    """The number of threads that a training began with; 0 where the note of it is damaged."""
    try:
        return max(0, int(json.loads(checkpoints.read(PROCESS))["threads"]))
    except (ValueError, KeyError, TypeError):
        return 0


@contextmanager
def same_threads(checkpoints: Store) -> Iterator[None]:
    """Compute, inside this context, with as many threads as the training that writes to `checkpoints` began with: sums
    over another number of threads round otherwise.
    """
    here = torch.get_num_threads()
    if not checkpoints.exists(PROCESS):
        checkpoints.write(PROCESS, json.dumps({"threads": here}).encode())
    began = _noted(checkpoints) or here
    if began > allowed_cores() and not os.environ.get(VARIABLE):
        log.warning(
            "this training began with %d threads, and %d cores are here: it goes on with as many, more slowly, unless "
            "%s says otherwise", began, allowed_cores(), VARIABLE,
        )  # fmt: skip
    if began != here and os.environ.get(VARIABLE):
        log.info(
            "%d threads, as %s says; this training began with %d, and goes on with other roundings",
            here,
            VARIABLE,
            began,
        )
        began = here
    elif began != here:
        log.info("%d threads, with which this training began: so its numbers are those of an unbroken one", began)
    torch.set_num_threads(began)
    try:
        yield
    finally:
        torch.set_num_threads(here)
