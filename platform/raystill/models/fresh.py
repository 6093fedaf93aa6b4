"""Stable Diffusion pipelines that are trained from scratch: the sizes of their networks, and writing trained ones in
diffusers' format.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UniPCMultistepScheduler
from jaxtyping import Int
from torch import Tensor, nn

from raystill.config.fingerprint import introduced
from raystill.flow.predictions import Kind
from raystill.models.artifact import let_read
from raystill.models.backbones.settings import INDEX, Settings
from raystill.models.backbones.stable_diffusion import StableDiffusion
from raystill.models.parts import pipeline_of
from raystill.models.pipeline import Pipeline
from raystill.models.stock import StockSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The facts of a tokenizer that a text encoder is built from."""

    vocabulary: int  # number of tokens
    start: int  # id of the token before every caption
    end: int  # id of the token after every caption, with which captions are also padded
    empty: tuple[int, ...]  # ids of the empty caption, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderShape:
    """Widths of an AutoencoderKL; every entry after the first halves the picture's side once."""

    channels: int = introduced(3)  # of a picture
    widths: tuple[int, ...] = introduced((32, 64, 96))  # channels at each resolution, the finest first
    layers: int = introduced(1)  # layers per block
    latent_channels: int = introduced(4)
    groups: int = introduced(16)  # of group normalisation

    @property
    def factor(self) -> int:
        """Pixels per latent position, along a side."""
        return int(2 ** (len(self.widths) - 1))

    def build(self) -> Any:
        """An AutoencoderKL of this shape with random weights."""
        from diffusers import AutoencoderKL  # here and below: diffusers' models take seconds to import

        n = len(self.widths)
        return AutoencoderKL(
            in_channels=self.channels,
            out_channels=self.channels,
            down_block_types=("DownEncoderBlock2D",) * n,
            up_block_types=("UpDecoderBlock2D",) * n,
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            latent_channels=self.latent_channels,
            norm_num_groups=self.groups,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserShape:
    """Sizes of the text encoder and the UNet; attention to the text happens at the lower resolutions only."""

    widths: tuple[int, ...] = introduced((96, 144))  # channels of the UNet at each resolution, the finest first
    layers: int = introduced(1)  # layers per block of the UNet
    heads: int = introduced(4)  # attention heads of the UNet
    groups: int = introduced(16)  # of the UNet's group normalisation
    text_width: int = introduced(128)  # features per token
    text_layers: int = introduced(2)  # layers of the text encoder
    text_heads: int = introduced(4)  # attention heads of the text encoder
    text_length: int = introduced(24)  # tokens per caption
    vocabulary: int = introduced(2600)  # tokens that the tokenizer may have at most

    def unet(self, latent_channels: int, latent_size: int) -> Any:
        """A UNet2DConditionModel of these sizes with random weights."""
        from diffusers import UNet2DConditionModel

        n = len(self.widths)
        return UNet2DConditionModel(
            sample_size=latent_size,
            in_channels=latent_channels,
            out_channels=latent_channels,
            down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (n - 1)),
            up_block_types=(*("CrossAttnUpBlock2D",) * (n - 1), "UpBlock2D"),
            block_out_channels=self.widths,
            layers_per_block=self.layers,
            cross_attention_dim=self.text_width,
            attention_head_dim=self.heads,
            norm_num_groups=self.groups,
        )

    def text_encoder(self, tokens: Tokens) -> Any:
        """A CLIPTextModel of these sizes for a tokenizer, with random weights."""
        from transformers import CLIPTextConfig, CLIPTextModel

        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=tokens.vocabulary,
                hidden_size=self.text_width,
                intermediate_size=4 * self.text_width,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                max_position_embeddings=self.text_length,
                projection_dim=self.text_width,
                bos_token_id=tokens.start,
                eos_token_id=tokens.end,
                pad_token_id=tokens.end,
            )
        )


def stable_diffusion_scheduler(kind: Kind) -> DDIMScheduler:
    """The DDIM scheduler on Stable Diffusion's schedule (scaled linear, 1000 steps), with trailing spacing, so that
    sampling in few steps begins at the noisiest timestep.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        steps_offset=1,  # without effect on trailing spacing; diffusers warns of any other
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def fresh_scheduler(kind: Kind) -> DDIMScheduler | UniPCMultistepScheduler:
    """The scheduler of a fresh pipeline whose network predicts `kind`: Stable Diffusion's schedule, or the straight one
    (1000 steps, no shift) for flow predictions.

    The straight one is written as UniPC with flow sigmas, since StableDiffusionPipeline cannot sample with
    FlowMatchEulerDiscreteScheduler (it has no `init_noise_sigma`).
    """
    if kind != "flow_prediction":
        return stable_diffusion_scheduler(kind)
    return UniPCMultistepScheduler(prediction_type=kind, use_flow_sigmas=True, flow_shift=1.0, steps_offset=1)


def save_autoencoder(
    shape: AutoencoderShape, averages: Mapping[str, Tensor], scaling_factor: float, directory: Path
) -> Any:
    """Write a trained autoencoder in half precision with its latent scale, and return it ready to encode."""
    vae = shape.build()
    vae.load_state_dict({name.removeprefix("vae."): t for name, t in averages.items()})
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.half().save_pretrained(directory)
    return vae.float().eval()


def save_pipeline(unet: nn.Module, text_encoder: nn.Module, kind: Kind, directory: Path) -> None:
    """Write a whole pipeline in half precision around the autoencoder and tokenizer that lie in `directory` already."""
    from diffusers import StableDiffusionPipeline

    vae = load_autoencoder(directory / "vae")
    vae.register_to_config(_name_or_path="")  # else the configuration names a path of this machine
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=load_tokenizer(directory / "tokenizer"),
        unet=unet,
        scheduler=fresh_scheduler(kind),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(dtype=torch.float16).save_pretrained(directory, safe_serialization=True)
    let_read(directory)


def pipeline_in_memory(
    unet: Any, text_encoder: nn.Module, vae: Any, tokenizer: Any, scheduler: StockSampler
) -> Pipeline:
    """A Stable Diffusion pipeline of networks that are being trained."""
    index = {"_class_name": StableDiffusion.pipelines[0]}
    settings = Settings(Path("in-memory"), {INDEX: index, "unet": dict(unet.config), "vae": dict(vae.config)})
    backbone = StableDiffusion(settings)
    encoder = pipeline_of(backbone, scheduler, {"tokenizer": tokenizer, "text_encoder": text_encoder})
    return Pipeline(
        backbone, scheduler, "", {"encoder": lambda: encoder, "network": lambda: unet, "vae": lambda: vae}
    )  # fmt: skip


def load_autoencoder(directory: Path) -> Any:
    """Read an AutoencoderKL in single precision, ready to encode."""
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(
        directory, dtype=torch.float32, local_files_only=True, use_safetensors=True
    ).eval()


def load_tokenizer(directory: Path) -> Any:
    """Read a CLIPTokenizer from its directory."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(directory, local_files_only=True)


def tokenize(tokenizer: Any, captions: list[str]) -> Int[Tensor, "batch length"]:
    """Token ids padded and truncated to the tokenizer's own length."""
    length = tokenizer.model_max_length
    ids: Tensor = tokenizer(
        captions, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
    ).input_ids
    return ids


def tokens_of(tokenizer: Any) -> Tokens:
    """The facts of a tokenizer that a text encoder is built from."""
    empty = tokenizer("", padding="max_length", max_length=tokenizer.model_max_length).input_ids
    return Tokens(
        vocabulary=len(tokenizer), start=tokenizer.bos_token_id, end=tokenizer.eos_token_id, empty=tuple(empty)
    )
