"""Conditional paths x_t = data(t) x_0 + mean(t) mu + noise(t) eps between a clean latent and its instance's target.

Sampling starts at the teacher's start z = s_1 x_0 + n_1 mu. Where a schedule's terminal signal s_1 is not 0 (Stable
Diffusion 1.5, SDXL), a path whose formula knows nothing of it ends elsewhere, and its student is first asked at an
angle that it was not trained at. So the ray and the straight path end where the schedule does; `end="own"` is how they
ended before, for adapters that were trained so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from math import sqrt
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

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
    """A conditional path over a teacher's schedule; an implementation's fields are its settings."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients of data, mean and noise at times in [0, 1], shape (batch,)."""


End = Literal["schedule", "own"]  # where a path ends: at the angle at which the teacher's schedule does, or its own


class Levels(NamedTuple):
    """Signal s_1 and noise n_1 of a schedule at the start of sampling."""

    signal: float
    noise: float


@lru_cache(maxsize=64)  # called by every `coefficients`, which a sampler's times evaluate 60 times
def terminal(schedule: Schedule) -> Levels:
    """Levels s_1 and n_1 of a schedule at the start of sampling; a schedule is on the CPU: no device sync."""
    one = torch.ones(1, dtype=torch.float64)
    return Levels(float(schedule.signal(one)), float(schedule.noise(one)))


class RayTarget(NamedTuple):
    """The Gaussian N(f mu, (c sigma)^2 I) that a ray path pulls a sample to."""

    mean: float  # f, the factor of mu
    std: float  # c sigma, the standard deviation


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPath:
    """RayFlow's path to the sample's own Gaussian, x_t = s_t x_0 + f (1 - s_t) mu + c sigma n_t eps (2503.07699), with
    mu = (z - s_1 x_0) / n_1 of the teacher's start z.

    The paper has f = c = 1, and its mu is (z - s_1 x_0) / (1 - s_1). Here f = c n_1 / (1 - s_1) turns our mu into the
    paper's, and c = 1 / sqrt(1 + sigma^2) gives the end the teacher's length: the path's angle at t = 1 is the
    schedule's for every sigma. At sigma 0 the end is z. At sigma > 0 sampling enters at c z + c sigma eps, which is
    N(0, I) and differs from the path's end by -(1 - c) s_1 x_0 + c sigma (1 - n_1) eps.
    """

    sigma: float = introduced(0.0)  # variance coefficient sigma in [0, 1]; not the schedule's noise level
    end: End = introduced("own", now="schedule")  # "schedule" ends at the teacher's last angle; "own" has f = c = 1

    def __post_init__(self) -> None:
        _check_end(self.end)
        if not 0 <= self.sigma <= 1:
            raise UserError(
                f"sigma is {self.sigma}; the ray path's variance coefficient lies in [0, 1]: write for example 0.1"
            )

    def target(self, schedule: Schedule) -> RayTarget:
        """Factor f of the target's mean and its standard deviation c sigma."""
        if self.end == "own":
            return RayTarget(1.0, self.sigma)
        s_1, n_1 = terminal(schedule)
        c = 1 / sqrt(1 + self.sigma**2)
        return RayTarget(c * n_1 / (1 - s_1), c * self.sigma)

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, f (1 - s_t), c sigma n_t)."""
        signal, target = schedule.signal(t), self.target(schedule)
        return Coefficients(signal, target.mean * (1 - signal), target.std * schedule.noise(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class PairedDiffusionPath:
    """Rectified Diffusion's paired path x_t = s_t x_0 + n_t mu, from the teacher's own start (2410.07303)."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, n_t, 0)."""
        return Coefficients(schedule.signal(t), schedule.noise(t), torch.zeros_like(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class StraightPath:
    """The straight path x_t = (1 - u) x_0 + u mu of rectified flow's pairs (2209.03003), u = t u_1.

    Its end u_1 = n_1 / (s_1 + n_1) has the angle at which the teacher's schedule ends; where that is pure noise, u is
    t.
    """

    end: End = introduced("own", now="schedule")  # "own" has u_1 = 1, beyond a schedule that ends with some signal

    def __post_init__(self) -> None:
        _check_end(self.end)

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (1 - u, u, 0)."""
        check_times(t)
        last = 1.0
        if self.end == "schedule":
            s_1, n_1 = terminal(schedule)
            last = n_1 / (s_1 + n_1)
        u = last * t
        return Coefficients(1 - u, u, torch.zeros_like(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffusionPath:
    """The teacher's own path x_t = s_t x_0 + n_t eps, without a target mean (2006.11239)."""

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        """Coefficients (s_t, 0, n_t)."""
        return Coefficients(schedule.signal(t), torch.zeros_like(t), schedule.noise(t))


PATHS: tuple[type[Path], ...] = (RayPath, PairedDiffusionPath, StraightPath, DiffusionPath)


def path_of(settings: Mapping[str, Any]) -> Path:
    """The path that canonical settings describe, {"kind": "RayPath", "sigma": 0.1, "end": "schedule"}; UserError for
    other settings. Settings without an `end` are older than this field and get end="own".
    """
    kinds: dict[Any, Any] = {kind.__name__: kind for kind in PATHS}
    chosen = dict(settings)
    name = chosen.pop("kind", None)
    if name not in kinds:
        raise UserError(f"the path is of kind {name!r}; write one of {', '.join(kinds)}")
    known = {f.name for f in fields(kinds[name])}
    if unknown := set(chosen) - known:
        raise UserError(f"a {name} has no {', '.join(sorted(unknown))}: leave it away, or write RayPath")
    path: Path = kinds[name](**({"end": "own"} if "end" in known else {}) | chosen)
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


def _check_end(end: str) -> None:
    if end not in get_args(End):
        raise UserError(f"the end of a path is {end!r}; write one of {', '.join(get_args(End))}")
