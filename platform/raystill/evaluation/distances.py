"""Distances between two sets of pictures, taken from their features in float64."""

from dataclasses import dataclass
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from raystill.config.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaussian:
    """Mean and covariance of the features of `count` pictures: all that the Frechet distance needs of a set."""

    mean: Float64[Tensor, " d"]
    covariance: Float64[Tensor, "d d"]
    count: int


class Estimate(NamedTuple):
    """A distance estimated on random subsets: its mean over them, and the standard deviation between them."""

    mean: float
    std: float


def statistics(features: Float[Tensor, "n d"]) -> Gaussian:
    """Take mean and unbiased covariance in float64; UserError for fewer than 2 pictures or non-finite features."""
    count = len(features)
    if count < 2:
        raise UserError(f"found {count} pictures, expected at least 2: one picture has no covariance")
    features = _finite(features)
    mean = features.mean(0)
    centred = features - mean
    return Gaussian(mean=mean, covariance=centred.T @ centred / (count - 1), count=count)


def frechet(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, allow_few: bool = False) -> float:
    """Give the Frechet distance of two sets of features; see `frechet_between`."""
    if allow_few and 2 <= min(len(a), len(b)) <= max(len(a), len(b)) < a.shape[1] == b.shape[1]:
        # With fewer pictures than features the centred features are themselves factors, smaller than the covariances'.
        return _between(*_centred(a), *_centred(b))
    return frechet_between(statistics(a), statistics(b), allow_few=allow_few)


def frechet_between(a: Gaussian, b: Gaussian, *, allow_few: bool = False) -> float:
    """The Frechet distance of two Gaussians with means m and covariances C, squared as is usual (Heusel et al. 2017,
    arXiv:1706.08500): |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

    It is biased upwards, the more the fewer pictures, so compare equal counts only. Raises UserError where a set has
    no more pictures than features (its covariance is singular and the bias dominates), unless `allow_few`."""
    if a.mean.shape != b.mean.shape:
        raise UserError(f"found features of lengths {len(a.mean)} and {len(b.mean)}, expected those of one network")
    for gaussian in (a, b):
        if gaussian.count <= len(gaussian.mean) and not allow_few:
            raise UserError(
                f"found {gaussian.count} pictures for a Frechet distance on {len(gaussian.mean)} features, expected "
                "more pictures than features: draw more, or use the kernel distance, which is unbiased"
            )
    return _between(a.mean, _root(a.covariance), b.mean, _root(b.covariance))


def kernel_distance(
    a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], *, subsets: int = 100, subset_size: int = 500, seed: int = 0
) -> Estimate:
    """The unbiased kernel distance (KID): mean `discrepancy` of subsets (Binkowski et al. 2018, arXiv:1801.01401).

    Random subsets are drawn without repetition, the same ones for the same seed. Raises UserError where a set is
    smaller than a subset."""
    smaller = min(len(a), len(b))
    if not 2 <= subset_size <= smaller or subsets < 1:
        raise UserError(
            f"found {subsets} subsets of {subset_size} pictures out of sets of {len(a)} and {len(b)}, expected at "
            f"least one subset of 2 to {smaller}"
        )
    a, b = _finite(a), _finite(b)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=generator)[:subset_size]]
        y = b[torch.randperm(len(b), generator=generator)[:subset_size]]
        values.append(discrepancy(x, y))
    between = torch.stack(values)
    return Estimate(mean=float(between.mean()), std=float(between.std(correction=0)))


def discrepancy(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy under (x.y / d + 1)^3 (arXiv:1801.01401, eq. 4); may be negative."""
    within = [_kernel(z, z).fill_diagonal_(0).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return within[0] + within[1] - 2 * _kernel(x, y).mean()


def encode(gaussian: Gaussian, network: str) -> bytes:
    """Write reference statistics as safetensors; `network` names what made the features."""
    tensors = {"mean": gaussian.mean, "covariance": gaussian.covariance, "count": torch.tensor(gaussian.count)}
    return safetensors.torch.save({f"{network}.{key}": tensor for key, tensor in tensors.items()})


def decode(data: bytes, network: str) -> Gaussian:
    """Read what `encode` wrote; UserError where it is damaged or another network made the features."""
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise UserError(
            f"found unreadable reference statistics ({error}), expected safetensors: remake them"
        ) from error
    if f"{network}.mean" not in tensors:
        raise UserError(
            f"found reference statistics {sorted(tensors)}, expected those of the network {network!r}: remake them"
        )
    mean, covariance, count = (tensors[f"{network}.{key}"] for key in ("mean", "covariance", "count"))
    return Gaussian(mean=mean, covariance=covariance, count=int(count))


def _between(
    mean_a: Float64[Tensor, " d"], a: Float64[Tensor, "d n"], mean_b: Float64[Tensor, " d"], b: Float64[Tensor, "d m"]
) -> float:
    """Frechet distance of two Gaussians from means and factors F of their covariances, C = F F^T."""
    # tr (C_a C_b)^(1/2) is the sum of the singular values of F_a^T F_b. Eigenvalues of F_a^T C_b F_a, and then their
    # roots, would turn rounding of 1e-16 into 1e-8.
    cross = torch.linalg.svdvals(a.T @ b).sum()
    return float((mean_a - mean_b).square().sum() + a.square().sum() + b.square().sum() - 2 * cross)


def _centred(features: Float[Tensor, "n d"]) -> tuple[Float64[Tensor, " d"], Float64[Tensor, "d n"]]:
    """Mean, and the factor (x - mean) / sqrt(n - 1) of the unbiased covariance."""
    features = _finite(features)
    mean = features.mean(0)
    return mean, (features - mean).T / (len(features) - 1) ** 0.5


def _root(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    """A factor R with R R^T = C; eigenvalues that rounding made negative count as the zeros they are."""
    eigenvalues, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors * eigenvalues.clamp(min=0).sqrt()
    return root


def _kernel(x: Float64[Tensor, "n d"], y: Float64[Tensor, "m d"]) -> Float64[Tensor, "n m"]:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _finite(features: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    features = features.double()
    bad = (~features.isfinite()).any(1).nonzero().flatten()
    if len(bad) > 0:
        raise UserError(
            f"features of {len(bad)} of {len(features)} pictures are not finite, the first at {int(bad[0])}, expected "
            "finite ones: look at those pictures"
        )
    return features
