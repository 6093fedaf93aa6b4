"""Sampling with a pipeline as it is, from the starts that its students draw from."""

from collections.abc import Sequence

import torch
from torch import Tensor

from raystill.flow.paths import DiffusionPath
from raystill.models.pipeline import Pipeline
from raystill.models.sampling import NORMAL, ODE, draw, guided_network, ray_scheduler

STEPS, GUIDANCE = 25, 7.5  # unless others are asked for


class StockPipeline:
    """A pipeline with its stock sampler: DDIM at trailing timesteps, or Euler where it is a flow's."""

    def __init__(self, pipeline: Pipeline, guidance: float | None = None) -> None:
        """Take a loaded pipeline; `guidance` is the scale, 1 for none."""
        self.pipeline = pipeline
        self._network = guided_network(pipeline.call, GUIDANCE if guidance is None else guidance, pipeline.empty)

    def draw(self, captions: Sequence[str], steps: int | None = None, seed: int = 0) -> Tensor:
        """Pictures of captions, uint8, shape (batch, height, width, channels), from the starts of `Adapter.draw`."""
        shape = (len(captions), *self.pipeline.latent_shape)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.pipeline.device)
        condition = self.pipeline.condition(list(captions))
        # Not the pipeline's own Euler for a flow: it is shifted twice unless it is given times.
        scheduler = ray_scheduler(self.pipeline.scheduler, DiffusionPath(), ODE, NORMAL)
        return self.pipeline.decode(draw(self._network, scheduler, normal, condition, steps or STEPS))
