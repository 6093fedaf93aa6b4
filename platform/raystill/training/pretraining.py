"""The two trainings of a pipeline from scratch: its autoencoder, then its UNet together with its text encoder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from raystill.engine.protocol import Optimizer
from raystill.flow.predictions import Kind
from raystill.flow.schedules import Schedule
from raystill.methods.autoencoder import Autoencoder, AutoencoderPass
from raystill.methods.denoising import Denoising, TextToImage
from raystill.training.loop import Training
from raystill.training.task import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderShape:
    """Widths of an AutoencoderKL; every entry after the first halves the picture's side once."""

    channels: int = 3
    widths: tuple[int, ...] = (32, 64, 96)
    layers: int = 1
    latent_channels: int = 4
    groups: int = 16  # of group normalisation

    @property
    def factor(self) -> int:
        """Pixels per latent position, along a side."""
        return int(2 ** (len(self.widths) - 1))

    def build(self) -> AutoencoderKL:
        """A fresh autoencoder."""
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

    widths: tuple[int, ...] = (96, 144)
    layers: int = 1
    heads: int = 4
    groups: int = 16
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_length: int = 24  # tokens per caption
    vocabulary: int = 2600  # upper bound

    def unet(self, latent_channels: int, latent_size: int) -> UNet2DConditionModel:
        """A fresh UNet."""
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

    def text_encoder(self, vocabulary: int, start: int, end: int) -> CLIPTextModel:
        """A fresh text encoder for a tokenizer of this many tokens and these special ids."""
        return CLIPTextModel(
            CLIPTextConfig(
                vocab_size=vocabulary,
                hidden_size=self.text_width,
                intermediate_size=4 * self.text_width,
                num_hidden_layers=self.text_layers,
                num_attention_heads=self.text_heads,
                max_position_embeddings=self.text_length,
                projection_dim=self.text_width,
                bos_token_id=start,
                eos_token_id=end,
                pad_token_id=end,
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTask:
    """Training of the autoencoder on stored pictures."""

    shape: AutoencoderShape = field(default_factory=AutoencoderShape)
    method: Autoencoder = field(default_factory=Autoencoder)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    name: str = "autoencoder"

    def build(self, device: torch.device) -> Assembly:
        """The autoencoder as one forward; the seed was set by the runner."""
        return Assembly(self.method, {"autoencoder": AutoencoderPass(self.shape.build()).to(device)})


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a text encoder must know of its tokenizer."""

    vocabulary: int
    start: int
    end: int
    empty: tuple[int, ...]  # ids of the empty caption, padded


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserTask:
    """Training of UNet and text encoder on stored latents and tokens."""

    tokens: Tokens
    latent_channels: int
    latent_size: int
    kind: Kind
    caption_dropout: float = 0.1
    shape: DenoiserShape = field(default_factory=DenoiserShape)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    name: str = "denoiser"

    def networks(self) -> TextToImage:
        """Fresh networks."""
        text = self.shape.text_encoder(self.tokens.vocabulary, self.tokens.start, self.tokens.end)
        return TextToImage(self.shape.unet(self.latent_channels, self.latent_size), text)

    def build(self, device: torch.device) -> Assembly:
        """UNet and text encoder as one forward."""
        schedule = Schedule.from_alphas(scheduler(self.kind).alphas_cumprod)
        method = Denoising(schedule=schedule, kind=self.kind, empty_tokens=self.tokens.empty, caption_dropout=self.caption_dropout)
        return Assembly(method, {"denoiser": self.networks().to(device)})


def scheduler(kind: Kind) -> DDIMScheduler:
    """Stable Diffusion's schedule (scaled linear, 1000 steps), with trailing spacing so that few steps begin at the noisiest one."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def save_autoencoder(task: AutoencoderTask, averages: Mapping[str, Tensor], scaling_factor: float, directory: Path) -> AutoencoderKL:
    """Write the averaged autoencoder in diffusers' format with its latent scale."""
    vae = task.shape.build()
    vae.load_state_dict({name.removeprefix("vae."): t for name, t in averages.items()})
    vae.register_to_config(scaling_factor=scaling_factor)
    vae.half().save_pretrained(directory)
    return vae.float().eval()
