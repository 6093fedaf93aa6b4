"""An adapter directory on its base, drawing with the steps, path and guidance that it carries."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.paths import path_of
from raystill.flow.predictions import Latent
from raystill.models.artifact import verify
from raystill.models.card import AdapterCard
from raystill.models.denoiser import Denoiser
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.student import read_sampling, sample_student


class Adapter:
    """A verified adapter, loaded and ready."""

    def __init__(self, directory: Path, base: Path | None = None) -> None:
        """Load from an adapter's directory; `base` is the pipeline's directory where it is not where the card says.
        UserError where they do not fit.
        """
        self.card = verify(directory)
        self.pipeline = _on_base(directory, self.card, base or Path(self.card.base.id))
        self.path = path_of(self.card.path)
        self.sampling, self.start = read_sampling(self.card.start)

    def latents(self, captions: Sequence[str], steps: int, seed: int) -> Latent:
        """Clean latents from the starts that diffusers draws with `torch.manual_seed(seed)`."""
        shape = (len(captions), *self.pipeline.latent_shape)
        start = self.start.apply(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))
        denoiser = Denoiser(self.pipeline.unet, self.pipeline.schedule, self.pipeline.kind)
        with torch.inference_mode():
            condition = self.pipeline.condition(list(captions))
            return sample_student(denoiser, self.path, start, condition, steps, self.sampling)

    def draw(self, captions: Sequence[str], steps: int | None = None, seed: int = 0, *, force: bool = False) -> Tensor:
        """Pictures of captions, uint8, shape (batch, height, width, channels); UserError for step counts it was not
        trained for, unless it is forced.
        """
        count = self.card.default_steps if steps is None else steps
        if count not in self.card.steps and not force:
            raise UserError(
                f"this adapter was trained for {', '.join(map(str, self.card.steps))} steps, found {count}: "
                f"write --steps {self.card.default_steps}, or --force to draw what was never measured"
            )
        return self.pipeline.decode(self.latents(captions, count, seed))


def _on_base(directory: Path, card: AdapterCard, base: Path) -> Pipeline:
    """The base pipeline with the adapter's weights in its UNet."""
    if not (base / "model_index.json").is_file():
        raise UserError(
            f"the adapter's base {card.base.id} is not in {base.resolve()}, expected a diffusers pipeline there; "
            "give its directory: --base DIRECTORY"
        )
    pipeline = load_pipeline(base)
    if pipeline.revision != card.base.revision:
        raise UserError(
            f"the adapter is for {card.base.id} at revision {card.base.revision}, "
            f"and {base} is at {pipeline.revision}; give the directory of the right base: --base DIRECTORY"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state, alphas, *rest = StableDiffusionPipeline.lora_state_dict(directory, return_lora_metadata=True)
        StableDiffusionPipeline.load_lora_into_unet(state, alphas, pipeline.unet, metadata=rest[0] if rest else None)
    return pipeline.to(torch.device("cpu"))
