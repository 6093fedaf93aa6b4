"""Teachers that tests bind methods to."""

import torch

from raystill.flow.predictions import Kind
from raystill.flow.schedules import Schedule
from raystill.methods.method import Given


def given(schedule: Schedule, kind: Kind, *, channels: int = 4, length: int = 4, features: int = 4) -> Given:
    """What a method is told of a teacher, with a random empty caption."""
    unconditional = torch.randn(1, length, features, generator=torch.Generator().manual_seed(99))
    return Given(schedule, kind, channels, unconditional, 0, {"down_blocks.0": 8, "down_blocks.1": 16, "mid_block": 16})
