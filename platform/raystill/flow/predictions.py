"""A network's prediction at a noisy point, and its conversion to clean data, noise and velocity in one place."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from raystill.flow.schedules import at_hand

# (batch, channels, height, width), or (batch, tokens, channels) where a pipeline packs them.
Latent = Float[Tensor, "batch *latent"]
Coefficient = Float[Tensor, "batch *ones"]  # broadcasts over a latent
Kind = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]

VANISHING = 1e-6  # smallest coefficient on the unit circle that anything is divided by


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
        """Estimate of x_0; a noise prediction has one only where signal > 0, as `check_data` says."""
        match self.kind:
            case "sample":
                return self.value
            case "v_prediction":  # v = s e - n x_0 (Salimans & Ho 2202.00512)
                return self.signal * self.x - self.noise * self.value
            case "epsilon":
                check_data(self.kind, self.signal.flatten().acos())
                return (self.x - self.noise * self.value) / self.signal
            case "flow_prediction":  # e - x_0 (Liu et al. 2209.03003)
                return (self.x - self.noise * self.value) / (self.signal + self.noise)

    @property
    def epsilon(self) -> Latent:
        """Estimate of the unit noise e; a data prediction has one only where noise > 0, as `check_noise` says."""
        match self.kind:
            case "epsilon":
                return self.value
            case "v_prediction":
                return self.noise * self.x + self.signal * self.value
            case "sample":
                check_noise(self.kind, self.noise.flatten().asin())
                return (self.x - self.signal * self.value) / self.noise
            case "flow_prediction":
                return (self.x + self.signal * self.value) / (self.signal + self.noise)

    @property
    def flow(self) -> Latent:
        """Estimate of e - x_0, the velocity of the straight path (2209.03003); it exists where `data` and `epsilon`
        do.
        """
        return self.value if self.kind == "flow_prediction" else self.epsilon - self.data

    def moved(self, angle: Float[Tensor, " batch"]) -> Latent:
        """The point of the same data and noise at other angles, radians: DDIM's jump D(x, t -> r) (2010.02502)."""
        return point(self.data, self.epsilon, angle)


def point(data: Latent, noise: Latent, angle: Float[Tensor, " batch"]) -> Latent:
    """The point of unit length cos(angle) x_0 + sin(angle) e, at angles in radians."""
    return column(angle.cos(), data) * data + column(angle.sin(), data) * noise


def check_data(kind: Kind, angle: Float[Tensor, " batch"]) -> None:
    """Refuse, with ValueError, to ask a noise prediction for x_0 at pure noise; angles in radians, checked only where
    they are on the CPU.
    """
    if kind == "epsilon" and at_hand(angle) and bool((angle.cos().abs() < VANISHING).any()):
        raise ValueError(
            "an epsilon prediction has no x_0 at zero signal; a zero-SNR schedule needs v_prediction, a flow schedule "
            "flow_prediction. Otherwise ask at times before the one where the signal vanishes"
        )


def check_noise(kind: Kind, angle: Float[Tensor, " batch"]) -> None:
    """Refuse, with ValueError, to ask a data prediction for the noise at clean data; angles in radians, checked only
    where they are on the CPU.
    """
    if kind == "sample" and at_hand(angle) and bool((angle.sin().abs() < VANISHING).any()):
        raise ValueError(
            "a sample prediction has no noise where the noise coefficient is 0; ask at times t > 0, such as 1 / K "
            "for a schedule of K steps, or use its data there"
        )


def guided(unconditional: Tensor, conditional: Tensor, scale: float | Coefficient) -> Tensor:
    """Classifier-free guidance e_w = e_u + w (e_c - e_u); w = 1 is no guidance (Ho & Salimans 2207.12598, in the
    convention of `w`, not `w - 1`).
    """
    return unconditional + scale * (conditional - unconditional)


def column(values: Float[Tensor, " batch"], like: Latent) -> Coefficient:
    """Shape one number per sample for broadcasting over a latent, in the latent's dtype and on its device; ValueError
    where there are more or fewer of them than samples.
    """
    if values.shape != like.shape[:1]:
        raise ValueError(
            f"expected one number per sample, shape ({len(like)},), found shape {tuple(values.shape)}: "
            f"write value.expand({len(like)}) to give every sample the same"
        )
    return values.to(like.device, like.dtype, non_blocking=True).view(-1, *[1] * (like.ndim - 1))
