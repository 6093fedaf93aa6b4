"""Stable Diffusion XL: two CLIP text encoders, whose pooled features are told with the picture's size and crop."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from raystill.flow.predictions import Latent
from raystill.models.backbones.stable_diffusion import StableDiffusion
from raystill.models.conditioning import Condition


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL. Condition: `prompt`, the features of both encoders' layer before the last, `pooled`, those
    of the second's whole caption, and `time_ids`, rows, columns, top and left of the crop, rows and columns of the
    picture, in pixels.
    """

    __slots__ = ()
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    encoders: ClassVar[tuple[str, ...]] = ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2")
    told_frames: ClassVar[bool] = True
    more_inputs: ClassVar[tuple[str, ...]] = ("addition_embed_type",)

    @property
    def _text_width(self) -> int:
        return sum(int(self.settings[part].get("hidden_size", 512)) for part in ("text_encoder", "text_encoder_2"))

    def framed(self, size: tuple[int, int], crop: tuple[int, int], side: int) -> Condition:
        """`time_ids` of a square picture of `side` pixels, cut at `crop` from one of `size`."""
        return {"time_ids": torch.tensor([[*size, *crop, side, side]], dtype=torch.float32)}

    def encode(self, texts: Any, captions: list[str]) -> Condition:
        """The features of captions, shapes (batch, tokens, width) and (batch, width)."""
        prompt, _, pooled, _ = texts.encode_prompt(
            captions, device=texts.text_encoder.device, do_classifier_free_guidance=False
        )
        return {"prompt": prompt, "pooled": pooled}

    def empty(self, texts: Any) -> Condition:
        """The condition of guidance's other branch: zeros, where the pipeline says so, else the empty caption's."""
        found = super().empty(texts)
        if self.settings.index.get("force_zeros_for_empty_prompt", True):
            return {name: torch.zeros_like(tensor) for name, tensor in found.items()}
        return found

    def call(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Tensor:
        """The UNet's value."""
        more = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        value: Tensor = network(x, timestep, condition["prompt"], added_cond_kwargs=more, return_dict=False)[0]
        return value

    def _scale(self, like: Tensor) -> float | Tensor:
        """1 / std for each channel where the autoencoder says it, as fine-tunes of it do, times the one scale."""
        std = self.settings["vae"].get("latents_std")
        scale = super()._scale(like)
        return scale if std is None else scale / like.new_tensor(std)[:, None, None]

    def _shift(self, like: Tensor) -> float | Tensor:
        mean = self.settings["vae"].get("latents_mean")
        return 0.0 if mean is None else like.new_tensor(mean)[:, None, None]
