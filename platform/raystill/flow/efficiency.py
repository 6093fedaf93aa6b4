"""How good a law of times can be, and is: second moments of the weighted gradient, relative to the objective's law.

Everything is given at `midpoints` of v = F_p(t), the quantile of the time in that law p; densities are q / p.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Oracle(NamedTuple):
    """The best law of time alone."""

    density: Float[Tensor, " points"]  # q* / p at the midpoints of equal cells of v, mean 1
    ratio: float  # second moment of the weighted gradient under q* over that under p


def midpoints(count: int) -> Float[Tensor, " points"]:
    """Middles of `count` equal cells of [0, 1], float64: where second moments and densities are compared."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def oracle(square: Float[Tensor, " points"]) -> Oracle:
    """Best law from measured E||grad||^2 at `midpoints` of v: density sqrt(g) over its mean, ratio (mean sqrt g)^2 /
    mean g.
    """
    root = square.sqrt()
    return Oracle(root / root.mean(), float(root.mean() ** 2 / square.mean()))


def relative_second_moment(square: Float[Tensor, "*#rows points"], density: Float[Tensor, "*#rows points"]) -> float:
    """Second moment of the weighted gradient under laws q over that under p: mean of g p / q over mean of g, from g =
    E||grad||^2 and densities q / p at `midpoints` of v; one row per instance, or one for all.
    """
    return float((square / density).mean() / square.mean())
