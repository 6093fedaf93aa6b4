"""The two trainings of a pipeline from scratch: its autoencoder, then its UNet together with its text encoder."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.engine.protocol import Optimizer
from raystill.flow.predictions import Kind
from raystill.methods.autoencoder import Autoencoder, AutoencoderPass
from raystill.methods.denoising import Denoising, TextToImage
from raystill.models.fresh import AutoencoderShape, DenoiserShape, Tokens, fresh_scheduler
from raystill.models.stock import schedule_of
from raystill.training.loop import Training
from raystill.training.task import Assembly


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoencoderTask:
    """Training of the autoencoder on stored pictures."""

    shape: AutoencoderShape = introduced_group(AutoencoderShape)
    method: Autoencoder = introduced_group(Autoencoder)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    name: Knob[str] = "autoencoder"

    def build(self, device: torch.device) -> Assembly:
        """Build the autoencoder behind one forward pass; `run_task` has set the seed of its weights."""
        autoencoder = self.shape.build()
        if self.training.checkpointing:
            autoencoder.enable_gradient_checkpointing()
        return Assembly(self.method, {"autoencoder": AutoencoderPass(autoencoder).to(device)})


@dataclass(frozen=True, slots=True, kw_only=True)
class DenoiserTask:
    """Training of UNet and text encoder on stored latents and tokens."""

    tokens: Tokens
    latent_channels: int
    latent_size: int
    kind: Kind  # flow_prediction trains on the straight schedule, the others on Stable Diffusion's
    caption_dropout: float = introduced(0.1)
    shape: DenoiserShape = introduced_group(DenoiserShape)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    name: Knob[str] = "denoiser"

    revision: ClassVar[int] = 2  # raised whenever its numbers change; 2: random numbers of 128-bit keys

    def networks(self) -> TextToImage:
        """Untrained UNet and text encoder."""
        text = self.shape.text_encoder(self.tokens)
        return TextToImage(self.shape.unet(self.latent_channels, self.latent_size), text)

    def build(self, device: torch.device) -> Assembly:
        """Build UNet and text encoder behind one forward pass."""
        schedule = schedule_of(fresh_scheduler(self.kind))
        method = Denoising(
            schedule=schedule, kind=self.kind, empty_tokens=self.tokens.empty, caption_dropout=self.caption_dropout
        )
        networks = self.networks()
        unet: Any = networks.unet  # mypy takes what diffusers' models have for tensors
        if self.training.checkpointing:
            unet.enable_gradient_checkpointing()
        return Assembly(method, {"denoiser": networks.to(device)})
