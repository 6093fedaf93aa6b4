"""Premetrics: distances of latents, one number per sample, of which a loss is the mean; a premetric's fields are its
settings.
"""

from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name, introduced
from raystill.flow.objectives import pseudo_huber
from raystill.flow.predictions import Latent


@dataclass(frozen=True, slots=True, kw_only=True)
class SquaredError:
    """Mean square of the numbers of a latent's error."""

    former: ClassVar[str] = "Squared"

    def per_sample(self, error: Latent) -> Float[Tensor, " batch"]:
        """Distance of each sample's error from 0."""
        return error.square().flatten(1).mean(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PseudoHuber:
    """Mean of sqrt(d^2 + c^2) - c over the numbers d of a latent's error: nearly their absolute value (2310.04378)."""

    c: float = introduced(1e-3)  # constant of pseudo-Huber, in units of the latent

    def __post_init__(self) -> None:
        _check(self.c)

    def per_sample(self, error: Latent) -> Float[Tensor, " batch"]:
        """Distance of each sample's error from 0."""
        return pseudo_huber(error, self.c).flatten(1).mean(dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class VectorHuber:
    """Pseudo-Huber distance (sqrt(|d|^2 + (c n)^2) - c n) / n of an error d of n numbers as one vector: samples with
    large errors count less (rf++, 2405.20320; the constant as in its published code, where others write c sqrt(n)).
    """

    c: float = introduced(0.00054)  # constant of pseudo-Huber, for each number of the latent

    def __post_init__(self) -> None:
        _check(self.c)

    def per_sample(self, error: Latent) -> Float[Tensor, " batch"]:
        """Distance of each sample's error from 0."""
        flat = error.flatten(1)
        count, square = flat.shape[1], flat.square().sum(dim=1)
        level = self.c * count
        return square / ((square + level**2).sqrt() + level) / count


Premetric: TypeAlias = SquaredError | PseudoHuber | VectorHuber


def _check(c: float) -> None:
    if not c > 0:
        raise UserError(f"the constant of a Huber distance is {c}; it is greater than 0, for example 0.001")


__getattr__ = by_former_name(globals())
