"""Sampling with an adapter directory: its weights on the base pipeline, its own scheduler and step counts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.models.artifact import LANDING_NAME, read_weights, verify
from raystill.models.card import AdapterCard
from raystill.models.conditioning import Condition
from raystill.models.counts import wrong_counts
from raystill.models.ctm import CTMScheduler
from raystill.models.hub import base_at
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.revision import is_of
from raystill.models.sampling import draw, guided_network, load_scheduler
from raystill.models.weights import add_delta, add_lora


class Adapter:
    """A verified adapter on its base pipeline, ready to sample."""

    def __init__(self, directory: Path, base: Path | None = None, device: torch.device | None = None) -> None:
        """Load an adapter's directory onto its base; `base` is the base pipeline's directory where that differs from
        the card's, `device` where it draws, the CPU by default. UserError where adapter and base do not fit.
        """
        self.card = verify(directory)
        self.pipeline = _on_base(directory, self.card, base or base_at(self.card.base.id, self.card.base.revision))
        self.pipeline.to(device or torch.device("cpu"))
        self.scheduler = load_scheduler(directory)
        self._network = guided_network(self.pipeline.call, self.card.guidance_scale, self.pipeline.empty)
        if isinstance(self.scheduler, CTMScheduler):
            self.scheduler.attach(self.pipeline.network, load_file(directory / LANDING_NAME))

    def latents(self, captions: Sequence[str], steps: int, seed: int) -> Latent:
        """Clean latents of captions from the starts that diffusers draws with `torch.manual_seed(seed)`."""
        shape = (len(captions), *self.pipeline.latent_shape)
        normal = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return self.sample(normal, self.pipeline.condition(list(captions)), steps)

    def sample(self, normal: Latent, condition: Condition, steps: int) -> Latent:
        """Clean latents from N(0, I) draws."""
        return draw(self._network, self.scheduler, normal, condition, steps)

    def draw(self, captions: Sequence[str], steps: int | None = None, seed: int = 0, *, force: bool = False) -> Tensor:
        """Pictures of captions, uint8, shape (batch, height, width, channels); UserError for a step count that the
        adapter was not trained for, unless `force` is set, and for one that its scheduler cannot draw in.
        """
        count = self.card.default_steps if steps is None else steps
        if count not in self.card.steps:
            self._check_untrained(count, force=force)
        return self.pipeline.decode(self.latents(captions, count, seed))

    def _check_untrained(self, count: int, *, force: bool) -> None:
        """Refuse, with UserError, an untrained step count that is not forced, or that the scheduler cannot draw in."""
        if not force:
            nearest = min(self.card.steps, key=lambda n: abs(n - count))
            raise UserError(
                f"this adapter was trained for {', '.join(map(str, self.card.steps))} steps, found {count}: "
                f"write --steps {nearest}, or --force to draw what was never measured"
            )
        if wrong := wrong_counts(self.scheduler, (count,), None):
            right = " or ".join(f"--steps {n}" for n in wrong[count])
            raise UserError(f"{type(self.scheduler).__name__} cannot draw in {count} steps: write {right}")


def _on_base(directory: Path, card: AdapterCard, base: Path) -> Pipeline:
    """The base pipeline with the adapter's weights in its network."""
    if not (base / "model_index.json").is_file():
        raise UserError(
            f"the adapter's base {card.base.id} is not in {base.resolve()}, expected a diffusers pipeline there; "
            "give its directory: --base DIRECTORY"
        )
    pipeline = load_pipeline(base)
    if not is_of(base, card.base.revision):
        raise UserError(
            f"the adapter is for {card.base.id} at revision {card.base.revision}, "
            f"and {base} is at {pipeline.revision}; give the directory of the right base: --base DIRECTORY"
        )
    add_trained(pipeline.network, directory, card)
    return pipeline


def add_trained(network: Any, directory: Path, card: AdapterCard) -> None:
    """Add a verified adapter's weights to those of a network; UserError where they are for another one."""
    tensors, settings = read_weights(directory, card)
    if settings is None:
        add_delta(network, tensors)
    else:
        add_lora(network, tensors, settings)
