"""Teachers that tests bind methods to: of Stable Diffusion's family, whose networks are called with one condition."""

from pathlib import Path

import torch
from torch import Tensor

from raystill.flow.predictions import Kind
from raystill.flow.schedules import Schedule
from raystill.methods.method import Given
from raystill.models.backbones.settings import Settings
from raystill.models.backbones.stable_diffusion import StableDiffusion
from raystill.models.conditioning import Condition


def family(channels: int = 4) -> StableDiffusion:
    """A UNet's family with blocks of 8 and 16 channels."""
    unet = {"in_channels": channels, "sample_size": 8, "block_out_channels": [8, 16]}
    return StableDiffusion(Settings(Path("of-a-test"), {"unet": unet, "vae": {"block_out_channels": [8, 8]}}))


bound = family().bound


def prompted(prompt: Tensor) -> Condition:
    """What a UNet is told."""
    return {"prompt": prompt}


def given(schedule: Schedule, kind: Kind, *, channels: int = 4, length: int = 4, features: int = 4) -> Given:
    """What a method is told of a teacher, with a random empty caption."""
    unconditional = torch.randn(1, length, features, generator=torch.Generator().manual_seed(99))
    return Given(schedule, kind, family(channels), prompted(unconditional), 0)
