"""Stable Diffusion pipelines in diffusers' format: loading with checks, identity, encoding and decoding."""

import importlib
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.shipped import located
from raystill.flow.predictions import Kind, Latent
from raystill.flow.schedules import Schedule
from raystill.models.fitting import check_fit, check_tokens
from raystill.models.revision import revision
from raystill.models.stock import StockSampler, kind_of, read_scheduler, schedule_of, stock_sampler
from raystill.models.weight_files import weight_variant

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
WEIGHTED = ("vae", "text_encoder", "unet")
Pictures = Float[Tensor, "batch colours rows columns"]  # in [-1, 1]


@dataclass(slots=True)
class Pipeline:
    """The networks of one text-to-image pipeline and what is needed to call them."""

    # Named and not imported: diffusers' models take seconds to import, which refusing a typing error must not cost.
    vae: Any  # AutoencoderKL
    text_encoder: Any  # CLIPTextModel
    tokenizer: Any  # CLIPTokenizer
    unet: Any  # UNet2DConditionModel
    scheduler: StockSampler  # DDIM, or Euler for a flow-matching teacher
    revision: str  # digest of the files that it was loaded from

    @property
    def schedule(self) -> Schedule:
        """The noise schedule that the network was trained on."""
        return schedule_of(self.scheduler)

    @property
    def kind(self) -> Kind:
        """What the UNet predicts (noise, data, v or flow), by diffusers' name."""
        return kind_of(self.scheduler)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent at the pipeline's own picture size."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @property
    def feature_widths(self) -> dict[str, int]:
        """Names and channels of the UNet's blocks, from the input on."""
        return feature_widths(self.unet.config)

    def tokens(self, captions: list[str]) -> Int[Tensor, "batch length"]:
        """Token ids of captions, padded and truncated to the text encoder's length."""
        return tokenize(self.tokenizer, captions)

    @torch.inference_mode()
    def condition(self, captions: list[str]) -> Float[Tensor, "batch length features"]:
        """Text features that the UNet attends to."""
        tokens = self.tokens(captions).to(self.text_encoder.device)
        features: Tensor = self.text_encoder(tokens)[0]
        return features

    @torch.inference_mode()
    def encode(self, pictures: Pictures) -> Latent:
        """Mean latents of pictures in [-1, 1], scaled to about unit variance."""
        latent: Tensor = self.vae.encode(pictures).latent_dist.mean * self.vae.config.scaling_factor
        return latent

    @torch.inference_mode()
    def decode(self, latents: Latent, batch_size: int = 32) -> Tensor:
        """Pictures of scaled latents as uint8, shape (batch, height, width, channels), on the CPU."""
        scaled = latents / self.vae.config.scaling_factor
        return torch.cat([to_bytes(self.vae.decode(part).sample) for part in scaled.split(batch_size)])

    def to(self, device: torch.device) -> "Pipeline":
        """Move every network to `device`, freeze it and put it in evaluation mode."""
        for network in (self.vae, self.text_encoder, self.unet):
            network.to(device).eval().requires_grad_(False)
        return self


def to_bytes(pictures: Pictures) -> Tensor:
    """Pictures in [-1, 1] as uint8, shape (batch, height, width, channels), on the CPU."""
    return ((pictures / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


def tokenize(tokenizer: Any, captions: list[str]) -> Int[Tensor, "batch length"]:
    """Token ids padded and truncated to the tokenizer's own length."""
    length = tokenizer.model_max_length
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def picture_shape(directory: Path) -> tuple[int, int]:
    """Side in pixels and channels of a pipeline's own pictures, from its settings alone."""
    vae, unet = (json.loads((directory / part / "config.json").read_text()) for part in ("vae", "unet"))
    return unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1), vae["in_channels"]


def feature_widths(config: Mapping[str, Any]) -> dict[str, int]:
    """Names and channels of a UNet's blocks by its settings, from the input on."""
    widths = list(config["block_out_channels"])
    down = {f"down_blocks.{i}": width for i, width in enumerate(widths)}
    up = {f"up_blocks.{i}": width for i, width in enumerate(reversed(widths))}
    middle = {"mid_block": widths[-1]} if config.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None else {}
    return {**down, **middle, **up}


@dataclass(frozen=True, slots=True)
class TeacherFacts:
    """Facts about a teacher that its pipeline's settings give without loading it."""

    schedule: Schedule
    kind: Kind
    features: Mapping[str, int]  # names and channels of its UNet's blocks
    scheduler: StockSampler
    time_condition: bool  # whether its UNet has a condition on the time embedding, as distilled ones may


def teacher_facts(directory: Path) -> TeacherFacts:
    """Read a teacher's facts; UserError where the directory is no pipeline or its scheduler is of an unknown kind."""
    check_pipeline(directory)
    scheduler = read_scheduler(directory)
    unet = json.loads((directory / "unet" / "config.json").read_text())
    told = unet.get("time_cond_proj_dim") is not None
    return TeacherFacts(
        schedule_of(scheduler), kind_of(scheduler), feature_widths(unet), stock_sampler(scheduler), told
    )


def licence_of(directory: Path) -> str:
    """The SPDX identifier in the header of a pipeline's README, "unknown" where there is none."""
    readme = directory / "README.md"
    found = re.search(r"^license:\s*(\S+)", readme.read_text(), re.MULTILINE) if readme.is_file() else None
    return found[1] if found else "unknown"


def quiet() -> None:
    """Keep the loaders' progress bars and notes off the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def load_pipeline(directory: str | Path, dtype: torch.dtype = torch.float32) -> Pipeline:
    """Load a Stable Diffusion pipeline from a directory in diffusers' format; UserError where it is none, is of another
    kind, or lacks weights.
    """
    path = located(str(directory))
    check_pipeline(path)
    quiet()
    vae, text_encoder, unet = (_weighted(path, name, dtype) for name in WEIGHTED)
    tokenizer = _class_of(path, "tokenizer").from_pretrained(path, subfolder="tokenizer", local_files_only=True)
    check_tokens(path, tokenizer, text_encoder)
    unet = unet.to(memory_format=torch.channels_last)  # the network is a fifth faster on CPUs
    return Pipeline(vae, text_encoder, tokenizer, unet, stock_sampler(read_scheduler(path)), revision(path))


def _weighted(path: Path, name: str, dtype: torch.dtype) -> Any:
    """One network of a pipeline, in evaluation mode; UserError where weights are missing, of another shape or not
    finite, which loaders pass over. Pickled weights are never read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network, told = _class_of(path, name).from_pretrained(
                path, subfolder=name, dtype=dtype, local_files_only=True, use_safetensors=True,
                variant=weight_variant(path, [name]), output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"teacher {str(path)!r} cannot be read: {name}: {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"teacher {str(path)!r}: the weights of {name} lack {len(missing)} tensors ({', '.join(missing[:3])}), "
            "which would be random numbers; fetch or write the pipeline anew"
        )
    bad = [key for key, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(
            f"teacher {str(path)!r}: {len(bad)} tensors of {name} hold numbers that are not finite "
            f"({', '.join(bad[:3])}); fetch or write the pipeline anew"
        )
    return network.eval()


def _class_of(path: Path, name: str) -> Any:
    """The class of a pipeline's part, one of diffusers or transformers; UserError for any other."""
    library, kind = json.loads((path / "model_index.json").read_text())[name]
    found = getattr(importlib.import_module(library), kind, None) if library in ("diffusers", "transformers") else None
    if found is None:
        raise UserError(f"teacher {str(path)!r}: {name} is a {library}.{kind}, of neither diffusers nor transformers")
    return found


def check_pipeline(path: Path) -> None:
    """Refuse, with UserError, a directory that is not a Stable Diffusion pipeline; reads small files only."""
    index = path / "model_index.json"
    if not index.is_file():
        found = ", ".join(sorted(p.name for p in path.iterdir())[:8]) if path.is_dir() else "no such directory"
        raise UserError(
            f"teacher {str(path)!r} is not a diffusers pipeline: expected {index.name} in it, "
            f"found: {found or 'nothing'}.\n"
            "Give a directory that StableDiffusionPipeline.save_pretrained wrote: --set teacher=DIRECTORY"
        )
    parts = json.loads(index.read_text())
    missing = [part for part in PARTS if part not in parts or not (path / part).is_dir()]
    if missing or parts["unet"][1] != "UNet2DConditionModel":
        raise UserError(
            f"teacher {str(path)!r} is a {parts.get('_class_name', 'pipeline of unknown class')} "
            f"{'without ' + ', '.join(missing) if missing else 'whose denoiser is ' + str(parts['unet'][1])}; "
            "expected a StableDiffusionPipeline (autoencoder, CLIP text encoder and tokenizer, UNet2DConditionModel, "
            "scheduler)."
        )
    read_scheduler(path)
    check_fit(path)
    weight_variant(path, WEIGHTED)
