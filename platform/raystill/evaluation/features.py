"""Feature networks, which turn pictures into the vectors that distances are taken from, and the LPIPS distance."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from raystill.config.errors import UserError
from raystill.evaluation.alexnet import AlexNet, load_alexnet

FEATURES = ("alexnet",)  # names that `feature_network` knows


@runtime_checkable  # so that the shape checks of the tests can look at it
class FeatureNetwork(Protocol):
    """A frozen network from pictures to features; figures carry its name: those of two networks cannot be compared."""

    @property
    def name(self) -> str:
        """The network's name beside figures; another resolution or layer is another name."""

    @property
    def size(self) -> int:
        """Length of a feature vector."""

    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Give the features of pictures in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlexNetFeatures:
    """Averages over positions of AlexNet's 2nd and 5th rectified layers (192 + 256 numbers).

    The 2nd layer answers to blur, noise and colour, the 5th to shape and content. All five layers (1152 numbers) are
    less sensitive with 1000 pictures, because the bias of the Frechet distance grows with the length of the vector; the
    5th alone has twice the variation between seeds."""

    alexnet: AlexNet
    resolution: int = 64  # pixels a side to which pictures are resized

    @property
    def name(self) -> str:
        """`alexnet`, followed by the resolution where it is not the usual 64."""
        return "alexnet" if self.resolution == 64 else f"alexnet_{self.resolution}"

    @property
    def size(self) -> int:
        """Length of a feature vector."""
        return 192 + 256

    def __call__(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 448"]:
        """Give the features of pictures in [0, 1], on the network's device."""
        pictures = pictures.to(self.alexnet.shift.device)
        activations = self.alexnet(self.alexnet.resized(pictures, self.resolution))
        return torch.cat([activations[1].mean((2, 3)), activations[4].mean((2, 3))], dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lpips:
    """LPIPS 0.1 with AlexNet, a perceptual distance of two pictures (Zhang et al. 2018, arXiv:1801.03924)."""

    alexnet: AlexNet
    resolution: int | None = 64  # pixels a side to which pictures are resized; None keeps their own

    @property
    def name(self) -> str:
        """`lpips_alexnet`, followed by the resolution where it is not the usual 64."""
        return "lpips_alexnet" if self.resolution == 64 else f"lpips_alexnet_{self.resolution or 'native'}"

    def __call__(
        self, reference: Float[Tensor, "n 3 h w"], *others: Float[Tensor, "n 3 h w"]
    ) -> Float[Tensor, "others n"]:
        """Give the distances of other pictures in [0, 1] from those at the same places in `reference`, on the network's
        device.
        """
        pictures = torch.cat([reference, *others]).to(self.alexnet.shift.device)
        if self.resolution is not None:
            pictures = self.alexnet.resized(pictures, self.resolution)
        distances = torch.zeros(len(others), len(reference), device=pictures.device)
        for activation, head in zip(self.alexnet(pictures), self.alexnet.heads, strict=True):
            unit = activation / (activation.norm(dim=1, keepdim=True) + 1e-10)
            first, *rest = unit.split(len(reference))
            distances = distances + torch.stack([(u - first).square().mean((2, 3)) @ head for u in rest])
        return distances


def feature_network(name: str) -> FeatureNetwork:
    """The feature network of a name in FEATURES, on the CPU; UserError for another name."""
    if name not in FEATURES:
        raise UserError(f"there is no feature network {name!r}; there are: {', '.join(FEATURES)}")
    return AlexNetFeatures(alexnet=load_alexnet())


def to_unit(pictures: UInt8[np.ndarray, "n h w c"]) -> Float[Tensor, "n 3 h w"]:
    """Turn stored pictures (0 to 255, grey or RGB) into RGB pictures in [0, 1]; UserError for other channel counts."""
    channels = pictures.shape[-1]
    if channels not in (1, 3):
        raise UserError(
            f"pictures have {channels} channels, expected 1 (grey) or 3 (RGB): lay transparent pictures on a "
            "background first, for example with PIL's Image.alpha_composite"
        )
    return torch.tensor(pictures).permute(0, 3, 1, 2).float().div_(255).expand(-1, 3, -1, -1)


@torch.inference_mode()
def extract(
    network: FeatureNetwork, pictures: UInt8[np.ndarray, "n h w c"], batch_size: int = 128
) -> Float[Tensor, "n d"]:
    """Give the features of stored pictures (0 to 255, grey or RGB) on the CPU; UserError where there are none."""
    if len(pictures) == 0:
        raise UserError("found no pictures to take features of, expected at least one")
    batches = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    # .cpu() waits for the device once per batch.
    return torch.cat([network(to_unit(batch)).float().cpu() for batch in batches])


@torch.inference_mode()
def pairwise(
    lpips: Lpips,
    reference: UInt8[np.ndarray, "n h w c"],
    *others: UInt8[np.ndarray, "n h w c"],
    batch_size: int = 128,
) -> Float[Tensor, "others n"]:
    """Give the LPIPS distances of other pictures (0 to 255) from those at their places in `reference`, on the CPU."""
    starts = range(0, len(reference), batch_size)
    if len(starts) == 0:
        raise UserError("found no pairs of pictures to compare, expected at least one")
    batches = [[to_unit(pictures[i : i + batch_size]) for pictures in (reference, *others)] for i in starts]
    return torch.cat([lpips(*batch).cpu() for batch in batches], dim=1)
