"""What raystill's own schedulers share: which step a timestep is, its time, and the precision to compute in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.schedules import FlowSchedule, Schedule, Times


def step_of(prepared: Sequence[float], timestep: Tensor | float | int) -> int:
    """Which of the prepared timesteps this is; UserError for any other."""
    asked = float(timestep)  # HOST SYNC: one per step
    for i, t in enumerate(prepared):
        if abs(asked - t) < 1e-2:
            return i
    raise UserError(
        f"timestep {asked:g} is not among the prepared ones, {list(prepared[:8])}: call set_timesteps(steps) first "
        "and pass its timesteps"
    )


def times_of(schedule: Schedule, timesteps: Tensor, count: int) -> Times:
    """The schedule's times of timesteps, one for each of `count` samples, on the CPU; inverse of its `timestep`."""
    if timesteps.numel() not in (1, count):
        raise UserError(f"found {timesteps.numel()} timesteps for {count} samples; give one, or one for each")
    k = timesteps.flatten().double().cpu().expand(count)  # HOST SYNC: one per call
    return (k if isinstance(schedule, FlowSchedule) else k + 1) / schedule.steps


def working(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()
