"""A trained student in memory, ready to be sampled."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from raystill.flow.predictions import Latent
from raystill.models.conditioning import Condition
from raystill.models.ctm import CTMScheduler, landing_of, make_room
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.sampling import Scheduler, draw, guided_network
from raystill.models.stock import StockSampler
from raystill.models.weights import Weights, load_trained, merge, prepare

MakeScheduler = Callable[[StockSampler], Scheduler]  # from the teacher's scheduler to the student's


class Student:
    """Trained weights merged into their teacher, with the scheduler that they are sampled by."""

    def __init__(
        self,
        teacher: Path,
        weights: Weights,
        tensors: Mapping[str, Tensor],
        scheduler: MakeScheduler,
        device: torch.device,
        guidance: float = 1.0,
    ) -> None:
        self.pipeline: Pipeline = load_pipeline(teacher)
        self.scheduler = scheduler(self.pipeline.scheduler)
        prepare(self.pipeline.network, weights)
        if landing_of(tensors):
            make_room(self.pipeline.network, self.pipeline.backbone.landing)
        load_trained(self.pipeline.network, tensors)
        merge(self.pipeline.network)
        if isinstance(self.scheduler, CTMScheduler):
            self.scheduler.attach(self.pipeline.network)
        self.pipeline.to(device)
        self._network = guided_network(self.pipeline.call, guidance, self.pipeline.empty)

    def latents(self, normal: Latent, condition: Condition, steps: int) -> Latent:
        """Clean latents from N(0, I) draws."""
        return draw(self._network, self.scheduler, normal, condition, steps)
