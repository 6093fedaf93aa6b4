"""Conditional paths x_t = data(t) x_0 + mean(t) mu + noise(t) eps between a clean latent and its instance's target."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent, column
from raystill.flow.schedules import Schedule, Times


class Coefficients(NamedTuple):
    """The three coefficients of a path at a batch of times, float64, shape (batch,) each."""

    data: Tensor
    mean: Tensor
    noise: Tensor

    @property
    def angle(self) -> Tensor:
        """Angle arctan(b / a) of the point's total noise b = sqrt(mean^2 + noise^2) to its signal a = data, mu counted
        as noise.
        """
        return torch.atan2(torch.hypot(self.mean, self.noise), self.data)

    @property
    def norm(self) -> Tensor:
        """Length c = sqrt(a^2 + b^2) by which a point is divided to become variance preserving."""
        return torch.hypot(self.data, torch.hypot(self.mean, self.noise))


@runtime_checkable  # so that tests can check annotations
class Path(Protocol):
    """A path over a teacher's schedule; an implementation is its own settings."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients at times in [0, 1], shape (batch,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPath:
    """RayFlow's path to the sample's own Gaussian N(mu, sigma^2 I): x_t = s_t x_0 + (1 - s_t) mu + sigma n_t eps
    (2503.07699).
    """

    sigma: float = 0.0  # variance coefficient sigma in [0, 1]; not the schedule's noise level

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 1:
            raise UserError(f"sigma is {self.sigma}; the ray path's variance coefficient lies in [0, 1]")

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, 1 - s_t, sigma n_t)."""
        signal = schedule.signal(t)
        return Coefficients(signal, 1 - signal, self.sigma * schedule.noise(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDiffusionPath:
    """Rectified Diffusion's paired path x_t = s_t x_0 + n_t mu, from the teacher's own start (2410.07303)."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, n_t, 0)."""
        return Coefficients(schedule.signal(t), schedule.noise(t), torch.zeros_like(t))


def interpolate(c: Coefficients, x_0: Latent, target_mean: Latent, eps: Latent) -> Latent:
    """Point x_t of the path with coefficients `c`; all latents of one shape."""
    return column(c.data, x_0) * x_0 + column(c.mean, x_0) * target_mean + column(c.noise, x_0) * eps


def times_at(path: Path, schedule: Schedule, angles: Tensor) -> Times:
    """Times at which the path has the given angles, by bisection to float64 resolution; angles beyond the path's end
    give 1.

    The angle grows with t on every path of this module, so a sampler's stock timesteps have one time each on the path.
    """
    low, high = torch.zeros_like(angles), torch.ones_like(angles)
    for _ in range(60):
        middle = (low + high) / 2
        before = path.coefficients(schedule, middle).angle < angles
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    return high
