"""Second moments of the weighted gradient under laws of times, relative to the objective's law p: how good a law is,
and how good the best one is.

Functions of the time are given at `midpoints` of v = F_p(t), the quantile of t in p; densities are q / p.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Oracle(NamedTuple):
    """The law q* of time alone that minimises the second moment of the weighted gradient."""

    density: Float[Tensor, " points"]  # q* / p at the midpoints of equal cells of v, mean 1
    ratio: float  # second moment of the weighted gradient under q* over that under p


def midpoints(count: int) -> Float[Tensor, " points"]:
    """Middles of `count` equal cells of [0, 1], float64: where second moments and densities are compared."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def oracle(square: Float[Tensor, " points"]) -> Oracle:
    """The `Oracle` of g = E||grad||^2 measured at `midpoints` of v: density sqrt(g) over its mean, and ratio
    (mean sqrt g)^2 / mean g.
    """
    root = square.sqrt()
    return Oracle(root / root.mean(), float(root.mean() ** 2 / square.mean()))


def relative_second_moment(square: Float[Tensor, "*#rows points"], density: Float[Tensor, "*#rows points"]) -> float:
    """Second moment of the weighted gradient under laws q over that under p: mean of g p / q over mean of g, from g =
    E||grad||^2 and densities q / p at `midpoints` of v; one row per instance, or one for all.
    """
    return float((square / density).mean() / square.mean())
