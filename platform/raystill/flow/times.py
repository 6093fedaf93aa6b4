"""Laws of the times at which training steps look at a path, with the weights that keep the loss unbiased.

Every fixed law is given by its quantile function, from which a batch is drawn with one stratified uniform per sample. A
law is used in one of two ways, which its field `importance` says:

- as the *objective*: the loss is an integral over this law, weights are 1 (what the papers named below do);
- as an *importance law* for the uniform objective: its draws are weighted by p / q, so that in expectation the loss is
  the uniform one, whatever the law. A share `importance` of the draws is uniform, which bounds the weights.

Learned laws (`flow.importance`, `flow.stein`) are always importance laws, for whichever fixed law is their `base`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.paths import Path, times_at
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times


class TimeDraw(NamedTuple):
    """A batch of times, float64, shape (batch,) each; on the CPU, or for learned laws on the device of their network.

    `quantile` is v = F_p(t), the quantile of the time in the objective's law p, in [0, 1]; with uniform times it is t
    itself.
    """

    t: Times
    weight: Tensor
    quantile: Tensor


@runtime_checkable  # so that tests can check annotations
class TimeSampler(Protocol):
    """A sampler of training times for a batch, with the weights that keep the loss unbiased."""

    def draw(self, count: int, path: Path, schedule: Schedule, rng: RandomStream) -> TimeDraw:
        """Draw `count` times with weights of mean 1 under the sampler's own law."""


class FixedTimes(ABC):
    """A law of times that is not learned; an implementation's fields are its settings."""

    @abstractmethod
    def quantile(self, v: Times, path: Path, schedule: Schedule) -> Times:
        """Time below which a share v of the law lies, for v in [0, 1], on v's device."""

    @property
    def objective(self) -> "FixedTimes":
        """The law p over which the loss is an integral."""
        return self

    def relative_density(self, v: Times) -> Times:
        """Density q / p of the drawn times, at quantiles v of the objective's law p; weights are its inverse."""
        return torch.ones_like(v)

    def draw(self, count: int, path: Path, schedule: Schedule, rng: RandomStream) -> TimeDraw:
        """Draw stratified times with weight 1."""
        v = rng.stratified(count)
        return TimeDraw(self.quantile(v, path, schedule), torch.ones_like(v), v)


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformTimes(FixedTimes):
    """Uniform times with weight 1: the objective that other fixed laws can be importance laws for."""

    def quantile(self, v: Times, path: Path, schedule: Schedule) -> Times:
        """The quantile v itself."""
        return v


class DensityTimes(FixedTimes):
    """A fixed law with a density on (0, 1), which can also serve as an importance law for uniform times."""

    importance: (
        float | None
    )  # None: this law is the objective; delta in (0, 1): an importance law with that uniform share

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """Density at times in [0, 1], of any shape."""

    @property
    def objective(self) -> FixedTimes:
        """The law p over which the loss is an integral: uniform times where this is an importance law, else this
        law.
        """
        return self if self.importance is None else UniformTimes()

    def relative_density(self, v: Times) -> Times:
        """Density q / p at v: the defensive mixture's where this is an importance law, else 1."""
        if self.importance is None:
            return FixedTimes.relative_density(self, v)
        return (1 - self.importance) * self.density(v) + self.importance

    def draw(self, count: int, path: Path, schedule: Schedule, rng: RandomStream) -> TimeDraw:
        """Draw stratified times, with weight 1 or, as an importance law, 1 / q at most 1 / delta."""
        if self.importance is None:
            return FixedTimes.draw(self, count, path, schedule, rng)
        shares = rng.stratified(count)
        t, weight = defended(shares, self.importance, lambda v: self.quantile(v, path, schedule), self.density)
        return TimeDraw(t, weight, t)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitNormalTimes(DensityTimes):
    """Logit-normal times, logit(t) ~ N(mean, std^2), most of them in the middle of the path, as Stable Diffusion 3 is
    trained (Esser et al. 2403.03206).
    """

    mean: float = introduced(0.0)  # mean of logit(t)
    std: float = introduced(1.0)  # standard deviation of logit(t), greater than 0
    importance: float | None = introduced(None)  # None: the objective; else uniform share delta of an importance law

    def __post_init__(self) -> None:
        check_share("importance", self.importance)
        if not self.std > 0:
            raise UserError(f"the std of logit-normal times is {self.std}; it is greater than 0, for example 1")

    def quantile(self, v: Times, path: Path, schedule: Schedule) -> Times:
        """Time sigmoid(mean + std Phi^-1(v))."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(v))

    def density(self, t: Tensor) -> Tensor:
        """Density N(logit t; mean, std^2) / (t (1 - t))."""
        t = inside(t)
        z = (torch.logit(t) - self.mean) / self.std
        return torch.exp(-0.5 * z.square()) / (math.sqrt(2 * math.pi) * self.std * t * (1 - t))


@dataclass(frozen=True, slots=True, kw_only=True)
class UShapedTimes(DensityTimes):
    """U-shaped times, of density proportional to exp(a t) + exp(a (1 - t)), most of them at both ends of the path (Lee
    et al. 2405.20320, section 4.1).

    The paper squeezes its times into [1e-5, 1 - 1e-5]; the loss here is finite at both ends, and nothing is squeezed.
    """

    steepness: float = introduced(4.0)  # a of the density, in (0, 100]
    importance: float | None = introduced(None)  # None: the objective; else uniform share delta of an importance law

    def __post_init__(self) -> None:
        check_share("importance", self.importance)
        if not 0 < self.steepness <= 100:
            raise UserError(f"the steepness of U-shaped times is {self.steepness}; it lies in (0, 100], for example 4")

    def quantile(self, v: Times, path: Path, schedule: Schedule) -> Times:
        """Time 1/2 + asinh((2 v - 1) sinh(a / 2)) / a."""
        t = 0.5 + torch.asinh((2 * v - 1) * math.sinh(self.steepness / 2)) / self.steepness
        return t.clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        """Density a cosh(a (t - 1/2)) / (2 sinh(a / 2))."""
        return self.steepness * torch.cosh(self.steepness * (t - 0.5)) / (2 * math.sinh(self.steepness / 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTimes(FixedTimes):
    """The discrete times at which a sampler of `steps` steps (or of any divisor of `steps`) asks the student, in
    trailing spacing.

    The times are those whose signal-to-noise ratio is the stock timestep's; the start gets `start_share` of the draws,
    the others share the rest. This is a choice of objective, the sampler's own times: weights are 1. With `steps` 1 it
    is the one-step variant, whose student learns nothing but the jump from the start to data.
    """

    student_steps: int = introduced(8, former="steps")  # steps of the student's sampler
    # share of draws at the start of sampling, the only point that a one-step sample depends on
    start_share: float = introduced(0.3)

    def __post_init__(self) -> None:
        if self.student_steps < 1 or not 0 <= self.start_share <= 1:
            raise UserError(
                f"method.times has student_steps {self.student_steps} and start_share {self.start_share}; write 1 "
                "or more and a share in [0, 1]: --set method.times.student_steps=8 --set method.times.start_share=0.3"
            )

    def quantile(self, v: Times, path: Path, schedule: Schedule) -> Times:
        """The sampler's time whose interval of [0, 1] holds v; times increase with v, and an interval is as long as its
        time's share of the draws.
        """
        shares = torch.full(
            (self.student_steps,), (1 - self.start_share) / max(self.student_steps - 1, 1), dtype=torch.float64
        )
        shares[-1] = self.start_share if self.student_steps > 1 else 1.0
        ends = shares.cumsum(0)[:-1].to(v.device, non_blocking=True)
        # mypy does not see that implementations of a protocol can be hashed; these are frozen values.
        times = _asked(self.student_steps, path, schedule).to(v.device, non_blocking=True)  # type: ignore[arg-type]
        return times[torch.searchsorted(ends, v, right=True)]


AnyTimes: TypeAlias = UniformTimes | LogitNormalTimes | UShapedTimes  # fixed laws with a density


@lru_cache(maxsize=16)  # paths are values, a run has one schedule, and finding times on a path takes longer than a draw
def _asked(steps: int, path: Path, schedule: Schedule) -> Times:
    """Times of a path, in increasing order, at which a sampler of so many steps asks the student."""
    return times_at(path, schedule, schedule.angle(schedule.sampling_times(steps)[:-1])).flip(0)


def defended(
    shares: Times, delta: float, quantile: Callable[[Times], Times], density: Callable[[Times], Tensor]
) -> tuple[Times, Tensor]:
    """Draws v of the defensive mixture (1 - delta) q + delta U(0, 1) and weights 1 / density, at most 1 / delta
    (Owen & Zhou 2000), from one uniform number per sample.
    """
    own = ((shares - delta) / (1 - delta)).clamp(0, 1)
    v = torch.where(shares < delta, shares / delta, quantile(own))
    return v, 1 / ((1 - delta) * density(v) + delta)


def inside(v: Tensor) -> Tensor:
    """Keep float64 numbers off 0 and 1, by one part in 10^15, where a logit would be infinite."""
    return v.clamp(1e-15, 1 - 1e-15)


def check_share(name: str, delta: float | None) -> None:
    """Refuse, with UserError, a uniform share outside (0, 1); None is no share."""
    if delta is not None and not 0 < delta < 1:
        raise UserError(
            f"{name} is {delta}, the share of draws that bounds the weights by its inverse; it lies between 0 and 1: "
            f"--set method.times.{name}=0.1"
        )
