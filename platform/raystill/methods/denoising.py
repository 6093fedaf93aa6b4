"""Ordinary conditional diffusion or flow-matching training of a UNet together with its text encoder (2006.11239;
v-prediction 2202.00512; flow matching 2209.03003).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raystill.flow.predictions import Kind, Latent, column
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.methods.method import Batch, Loss, Networks


class TextToImage(nn.Module):
    """Text encoder and UNet as one forward from tokens and noisy latents, so that one engine trains both."""

    def __init__(self, unet: nn.Module, text_encoder: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        """Return the UNet's prediction, shaped as x."""
        value: Tensor = self.unet(x, timestep, self.text_encoder(tokens)[0], return_dict=False)[0]
        return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Denoising:
    """Training of a denoiser: squared error of the network's own prediction at discrete steps, with captions dropped
    for guidance.
    """

    schedule: Schedule
    kind: Kind
    empty_tokens: tuple[int, ...]  # tokens of the empty caption, padded
    caption_dropout: float = 0.1  # share of samples trained with the empty caption
    learners: tuple[str, ...] = ("denoiser",)
    needs: tuple[str, ...] = ("latent", "tokens")

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated: the denoiser, at every step."""
        return self.learners

    def losses(self, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The denoiser's loss: mean squared error over stratified discrete times, unit weight in the network's own
        parameterisation.
        """
        latent, tokens = batch["latent"], batch["tokens"]
        count, steps = len(latent), self.schedule.steps
        k = (rng.stratified(count) * steps).long().clamp(max=steps - 1)
        t = (k + 1) / torch.tensor(steps, dtype=torch.float64)
        drop = (rng.uniform(count) < self.caption_dropout).to(latent.device, non_blocking=True)
        eps = rng.normal(latent.shape).to(latent.device, non_blocking=True)
        empty = tokens.new_tensor(self.empty_tokens)
        s, n = column(self.schedule.signal(t), latent), column(self.schedule.noise(t), latent)
        asked = self.schedule.timestep(t).round().long().to(latent.device, non_blocking=True)
        value = networks["denoiser"](s * latent + n * eps, asked, torch.where(drop[:, None], empty, tokens))
        target = self._target(latent, eps, self.schedule.angle(t))
        return {"denoiser": Loss((value.float() - target).square().mean())}

    def _target(self, latent: Latent, eps: Latent, angle: Times) -> Latent:
        """The correct output of the network at the point of unit length x = cos(angle) x_0 + sin(angle) e."""
        match self.kind:
            case "epsilon":
                return eps
            case "sample":
                return latent
            case "v_prediction":
                return column(angle.cos(), latent) * eps - column(angle.sin(), latent) * latent
            case "flow_prediction":
                return eps - latent
