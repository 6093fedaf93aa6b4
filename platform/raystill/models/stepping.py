"""Helpers of raystill's own schedulers: the step index and the time of a timestep, and the precision to compute in."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.schedules import FlowSchedule, Schedule, Times


def step_of(prepared: Sequence[float], timestep: Tensor | float | int) -> int:
    """Index of a timestep among the prepared ones; UserError where it is none of them."""
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
    """A tensor in float32, or unchanged where it is float64."""
    return x if x.dtype == torch.float64 else x.float()
