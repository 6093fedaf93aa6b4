"""Training of a picture autoencoder with a lightly regularised Gaussian latent (2112.10752, section 3.1, without its
adversary).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from raystill.config.fingerprint import introduced
from raystill.flow.randomness import RandomStream
from raystill.methods.method import Batch, Loss, Networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Autoencoder:
    """Training of an autoencoder: reconstruction of pictures in [-1, 1] through a latent that is pulled to N(0, I)."""

    kl_weight: float = introduced(1e-6)  # weight of the KL divergence, summed over the latent, per picture element
    # weight of the absolute error of horizontal and vertical differences, which keeps outlines sharp
    edge_weight: float = introduced(1.0)
    learners: tuple[str, ...] = introduced(("autoencoder",))
    needs: tuple[str, ...] = introduced(("image",))

    revision: ClassVar[int] = 2  # raised whenever results change; 2: random numbers of 128-bit keys

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated: the autoencoder, at every step."""
        return self.learners

    def losses(self, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The autoencoder's loss: absolute error, error of differences between neighbouring pixels, and KL; the metrics
        are in the pictures' units, range 2.
        """
        pictures = to_pictures(batch["image"])
        decoded, mean, log_variance = networks["autoencoder"](pictures, rng.key())
        error = (decoded - pictures).abs().mean()
        down, across = ((decoded.diff(dim=d) - pictures.diff(dim=d)).abs().mean() for d in (2, 3))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / pictures.numel()
        mse = (decoded - pictures).detach().square().mean()
        value = error + self.edge_weight * (down + across) + self.kl_weight * kl
        return {"autoencoder": Loss(value, {"quality/reconstruction_mse": mse, "loss/kl": kl.detach()})}


class AutoencoderPass(nn.Module):
    """One whole pass of an AutoencoderKL as a single forward, so that an engine can wrap it."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.vae: Any = vae  # its encode and decode are not a Module's

    def forward(self, pictures: Tensor, key: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return decoded pictures, latent means and clamped log-variances; `key` is the random key of the latent's
        noise.
        """
        posterior = self.vae.encode(pictures).latent_dist
        noise = RandomStream(key).normal(posterior.mean.shape).to(pictures.device)
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return decoded, posterior.mean, posterior.logvar


def to_pictures(image: Tensor) -> Tensor:
    """Turn stored uint8 pictures (batch, height, width, channels) into floats in [-1, 1], channels first."""
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1
