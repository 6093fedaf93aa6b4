"""Conditional paths x_t = data(t) x_0 + mean(t) mu + noise(t) eps between a clean latent and its instance's target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.predictions import Latent, column
from raystill.flow.schedules import Schedule, Times, check_times


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

    sigma: float = introduced(0.0)  # variance coefficient sigma in [0, 1]; not the schedule's noise level

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 1:
            raise UserError(
                f"sigma is {self.sigma}; the ray path's variance coefficient lies in [0, 1]: write for example 0.1"
            )

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


@dataclass(frozen=True, slots=True, kw_only=True)
class StraightPath:
    """The straight path x_t = (1 - t) x_0 + t mu of rectified flow's pairs, whatever the teacher's schedule
    (2209.03003).
    """

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (1 - t, t, 0)."""
        check_times(t)
        return Coefficients(1 - t, t, torch.zeros_like(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionPath:
    """The teacher's own path x_t = s_t x_0 + n_t eps, without a target mean (2006.11239)."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, 0, n_t)."""
        return Coefficients(schedule.signal(t), torch.zeros_like(t), schedule.noise(t))


def path_of(settings: Mapping[str, Any]) -> Path:
    """The path that canonical settings describe, {"kind": "RayPath", "sigma": 0.1}; UserError for others."""
    kinds = {kind.__name__: kind for kind in (RayPath, PairedDiffusionPath, StraightPath, DiffusionPath)}
    chosen = dict(settings)
    name = chosen.pop("kind", None)
    if name not in kinds:
        raise UserError(f"the path is of kind {name!r}; write one of {', '.join(kinds)}")
    unknown = set(chosen) - ({"sigma"} if name == "RayPath" else set())
    if unknown:
        raise UserError(f"a {name} has no {', '.join(sorted(unknown))}: leave it away, or write RayPath")
    path: Path = kinds[name](**chosen)
    return path


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


def derivatives(path: Path, schedule: Schedule, t: Times) -> Coefficients:
    """Derivatives of the three coefficients in t, so that d x_t / dt = data' x_0 + mean' mu + noise' eps.

    At a knot of a discrete schedule, between whose steps the angle is linear, it is the derivative from the left.
    """
    with torch.inference_mode(False), torch.enable_grad():  # a sampler may run without gradients
        at = t.clone().requires_grad_()
        return Coefficients(*(_slope(values, at) for values in path.coefficients(schedule, at)))


def ray_kernel(path: RayPath, schedule: Schedule, r: Times, t: Times) -> Coefficients:
    """RayFlow's forward step from time r to a later t, x_t - mu = k (x_r - mu) + sigma sqrt(n_t^2 - k^2 n_r^2) eps with
    k = s_t / s_r (2503.07699), as the coefficients (k, 1 - k, ...) of x_r, mu and eps.

    On a variance-preserving schedule k is sqrt(alpha) and the root is sqrt(1 - alpha). UserError where t < r.
    """
    _check_order(r, t)
    k = torch.where(r < t, schedule.signal(t) / schedule.signal(r), 1.0)  # pure noise is 0 / 0 away from itself
    added = (schedule.noise(t) ** 2 - (k * schedule.noise(r)) ** 2).clamp(min=0)
    return Coefficients(k, 1 - k, path.sigma * added.sqrt())


def chained(c: Coefficients, kernel: Coefficients) -> Coefficients:
    """Coefficients after one more step of a forward chain: those of kernel(x) for points x with coefficients `c`."""
    return Coefficients(
        kernel.data * c.data, kernel.data * c.mean + kernel.mean, torch.hypot(kernel.data * c.noise, kernel.noise)
    )


class Posterior(NamedTuple):
    """Coefficients of x_r = point x_t + data x_0 + mean mu + noise z, z ~ N(0, I); float64, shape (batch,) each."""

    point: Tensor
    data: Tensor
    mean: Tensor
    noise: Tensor


def ray_posterior(path: RayPath, schedule: Schedule, t: Times, r: Times) -> Posterior:
    """The posterior q(x_r | x_t, x_0, mu) of the ray path, r <= t: DDPM's (2006.11239, equation 7) on y = x - mu with
    sigma times its deviation. UserError where r > t or t = 0.
    """
    _check_order(r, t)
    if bool((t == 0).any()):  # times are on the CPU: no device sync
        raise UserError("there is nothing before data: ask for the posterior at times t > 0")
    kernel = ray_kernel(path, schedule, r, t)
    n_r, n_t = schedule.noise(r), schedule.noise(t)
    point = kernel.data * (n_r / n_t) ** 2
    data = schedule.signal(r) - point * schedule.signal(t)
    left = (1 - (kernel.data * n_r / n_t) ** 2).clamp(min=0).sqrt()
    return Posterior(point, data, 1 - point - data, path.sigma * n_r * left)


def _slope(values: Tensor, t: Times) -> Times:
    """Derivative of each value in its own time; 0 where it depends on none."""
    if not values.requires_grad:
        return torch.zeros_like(values)
    slope: Tensor = torch.autograd.grad(values.sum(), t, retain_graph=True)[0]
    return slope


def _check_order(r: Times, t: Times) -> None:
    if bool((r > t).any()):  # times are on the CPU: no device sync
        raise UserError(f"the chain goes from r to a later t, found r = {r.tolist()[:4]}, t = {t.tolist()[:4]}")
