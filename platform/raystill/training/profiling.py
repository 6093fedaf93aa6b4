"""Where the seconds of a training step go: a trace of a few steps, and a table of the operations that took most."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

log = logging.getLogger(__name__)
PROFILE = "RAYSTILL_PROFILE"  # environment variable: trainings are traced where it is set
WAIT, WARM_UP, TRACED = 2, 1, 3  # steps: left alone, run under the profiler for nothing, and traced
ROWS = 25  # operations in the table


@contextmanager
def profiled(place: Path, then: Callable[[int], None]) -> Iterator[Callable[[int], None]]:
    """Give a function to be called after every step of a training, which calls `then`. Where PROFILE is set, some steps
    are traced into PLACE.json, which https://ui.perfetto.dev shows, and their split goes into PLACE.txt.
    """
    if not os.environ.get(PROFILE):
        yield then
        return

    def write(found: Any) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(place.with_suffix(".json")))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        place.with_suffix(".txt").write_text(found.key_averages().table(sort_by=by, row_limit=ROWS))
        log.warning("the split of %d steps: %s; their trace: %s", TRACED, f"{place}.txt", f"{place}.json")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    steps = schedule(wait=WAIT, warmup=WARM_UP, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=write) as running:

        def stepped(step: int) -> None:
            then(step)
            running.step()

        yield stepped
