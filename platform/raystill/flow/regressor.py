"""The regressor of a learned time sampler: a small network from an instance to curves over v, the quantile of the
time.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raystill.flow.predictions import Latent

Features = Float[Tensor, "batch features"]
Curves = Float[Tensor, "batch points"]  # one row per sample: values at points v of [0, 1]
TINY = 1e-30  # smallest value that a logarithm is taken of; smaller float32 ones count as this
FEATURES_PER_CHANNEL = 5  # of `instance_features`


class TimeNetwork(nn.Module):
    """A network that gives a row of numbers (coefficients of curves) per instance: one learned row, plus a change by
    the instance's features that begins as zero.
    """

    def __init__(self, start: Float[Tensor, " outputs"], features: int, hidden: int) -> None:
        """Begin with the row `start`; with `features` 0 every instance gets the same row."""
        super().__init__()
        self.table = nn.Parameter(start.float())
        self.hidden = hidden
        self.change: nn.Sequential | None = None
        if features:
            out = nn.Linear(hidden, len(start), bias=False)
            nn.init.zeros_(out.weight)
            self.change = nn.Sequential(nn.Linear(features, hidden), nn.SiLU(), out)

    def forward(self, features: Features) -> Float[Tensor, "batch outputs"]:
        """One row of numbers per instance."""
        # Added to zeros: a view of the parameter would show an engine's updates of it in place.
        row = self.table + features.new_zeros(len(features), 1)
        # Over the root of the width: a step of an adaptive optimizer then moves the change about as far as the row.
        return row if self.change is None else row + self.change(features) / self.hidden**0.5


@torch.no_grad()
def instance_features(x_0: Latent, target_mean: Latent) -> Features:
    """Embedding h of an instance, five numbers per channel and all about 0 for latents of unit variance: the means of
    x_0 and mu, and the logarithms of the root mean squares of x_0, mu and (mu - x_0) / sqrt 2.
    """
    x_0, target_mean = x_0.float(), target_mean.float()
    sizes = [x.square().mean(dim=(2, 3)) for x in (x_0, target_mean, (target_mean - x_0) / 2**0.5)]
    logs = [0.5 * torch.log(size + 1e-6) for size in sizes]  # a flat latent is one of a small size
    return torch.cat([x_0.mean(dim=(2, 3)), target_mean.mean(dim=(2, 3)), *logs], dim=1)


def spline(coefficients: Float[Tensor, "batch knots"], v: Curves) -> Curves:
    """Values at v of uniform cubic B-splines over [0, 1]; four or more coefficients, each row its own spline."""
    return torch.einsum("bk,bpk->bp", coefficients, _bump(_distances(v, coefficients.shape[1])))


def spline_slope(coefficients: Float[Tensor, "batch knots"], v: Curves) -> Curves:
    """Derivatives of `spline` with respect to v."""
    knots = coefficients.shape[1]
    return torch.einsum("bk,bpk->bp", coefficients, _bump_slope(_distances(v, knots))) * (knots - 3)


def _distances(v: Curves, knots: int) -> Float[Tensor, "batch points knots"]:
    """Signed distances of v from the centres of the B-splines, in units of the centres' spacing; one centre lies beyond
    either end of [0, 1].
    """
    centres = torch.arange(knots, device=v.device, dtype=v.dtype) - 1
    return v[..., None] * (knots - 3) - centres


def _bump(x: Tensor) -> Tensor:
    """The cubic B-spline: 2/3 - x^2 + |x|^3 / 2 up to |x| = 1, (2 - |x|)^3 / 6 up to |x| = 2, and 0 beyond."""
    d = x.abs()
    return torch.where(d < 1, 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp(min=0) ** 3 / 6)


def _bump_slope(x: Tensor) -> Tensor:
    """Derivative of `_bump`."""
    d = x.abs()
    return x.sign() * torch.where(d < 1, -2 * d + 1.5 * d**2, -0.5 * (2 - d).clamp(min=0) ** 2)


def deviance(log_mean: Float[Tensor, " batch"], values: Float[Tensor, " batch"]) -> Float[Tensor, ""]:
    """Log of the arithmetic over the geometric mean of y / y_hat, with y the values and y_hat = exp(log_mean): not
    negative, and 0 for a prediction that is exact up to a factor.

    This is the exponential law's deviance with the batch's own best factor. It is least where y_hat is proportional to
    E[y | t, h], the expectation that stands inside the square root of xi; a squared error of log y would find its
    geometric mean, too low where values scatter. A scale of the values changes nothing, and every sample's gradient is
    bounded.
    """
    z = values.to(log_mean.dtype).clamp(min=TINY).log() - log_mean
    return torch.logsumexp(z, dim=0) - math.log(len(z)) - z.mean()
