"""What a network says about a noisy point, and its conversion to clean data and noise in one place."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Latent = Float[Tensor, "batch channels height width"]
Coefficient = Float[Tensor, "batch 1 1 1"]
Kind = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """A network's answer about x = signal x_0 + noise e with signal^2 + noise^2 = 1; kinds as diffusers names them."""

    kind: Kind
    value: Latent
    x: Latent
    signal: Coefficient
    noise: Coefficient

    @property
    def data(self) -> Latent:
        """Estimate of x_0; from a noise prediction only where signal > 0 (`Denoiser` refuses the others)."""
        match self.kind:
            case "sample":
                return self.value
            case "v_prediction":  # v = s e - n x_0 (Salimans & Ho 2202.00512)
                return self.signal * self.x - self.noise * self.value
            case "epsilon":
                return (self.x - self.noise * self.value) / self.signal
            case "flow_prediction":  # e - x_0 (Liu et al. 2209.03003)
                return (self.x - self.noise * self.value) / (self.signal + self.noise)

    @property
    def epsilon(self) -> Latent:
        """Estimate of the unit noise e; meaningful only where noise > 0."""
        match self.kind:
            case "epsilon":
                return self.value
            case "v_prediction":
                return self.noise * self.x + self.signal * self.value
            case "sample":
                return (self.x - self.signal * self.value) / self.noise
            case "flow_prediction":
                return (self.x + self.signal * self.value) / (self.signal + self.noise)


def guided(unconditional: Tensor, conditional: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance e_w = e_u + w (e_c - e_u); w = 1 is no guidance (Ho & Salimans 2207.12598, in the
    convention of `w`, not `w - 1`).
    """
    return unconditional + scale * (conditional - unconditional)


def column(values: Float[Tensor, " batch"], like: Latent) -> Coefficient:
    """Shape one number per sample for broadcasting over a latent, in the latent's dtype and on its device."""
    return values.to(like.device, like.dtype, non_blocking=True).view(-1, 1, 1, 1)
