"""Noise schedules of teachers as continuous functions of time, and the formulas of the usual discrete ones.

Glossary: `signal` is s_t and `noise` is n_t, the teacher's own coefficients of x_t = s_t x_0 + n_t e; `angle` is
arctan(n_t / s_t), which is all that a schedule says about a point once it is scaled to unit length. Everything between
networks (solvers, jumps, predictions) works on that unit circle. None of them is RayFlow's variance coefficient sigma,
which belongs to a path (`flow.paths`).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import pi

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, " batch"]
Grid = Float[Tensor, " steps_and_end"]  # times in the order of solving, float64: sampling falls from the start to 0
Alphas = Float[Tensor, " steps"]  # cumulative alphas A_t of K discrete steps, decreasing, float64


class Schedule(ABC):
    """A teacher's noise schedule in continuous time: data at t = 0, the start of sampling at t = 1."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Number K of the teacher's discrete steps."""

    @abstractmethod
    def angle(self, t: Times) -> Times:
        """Angle at times in [0, 1], radians; ValueError outside."""

    @abstractmethod
    def signal(self, t: Times) -> Times:
        """Signal level s_t, dimensionless."""

    @abstractmethod
    def noise(self, t: Times) -> Times:
        """Noise level n_t, dimensionless."""

    @abstractmethod
    def time_of(self, angle: Times) -> Times:
        """Invert `angle`: the time at which the schedule has the given angle, clamped to [0, 1]."""

    @abstractmethod
    def timestep(self, t: Times) -> Times:
        """The timestep that a network is given for the time t, real-valued."""

    @abstractmethod
    def input_scale(self, angle: Times) -> Times:
        """Factor from a point of unit length to the network's own input, at angles in radians."""

    @abstractmethod
    def sampling_times(self, steps: int) -> Grid:
        """Times of `steps` jumps as the stock scheduler spaces them, from the start to 0, `steps + 1` values."""


@dataclass(frozen=True, slots=True, eq=False)  # schedules compare by identity: tensors cannot be compared by ==
class DiffusionSchedule(Schedule):
    """A variance-preserving schedule through the teacher's K discrete steps; step k sits at time t = (k + 1) / K and
    data at t = 0.

    Between the knots the angle is interpolated linearly, which stays finite where the signal vanishes (zero terminal
    SNR).
    """

    angles: Float[Tensor, " knots"]  # radians, float64, increasing, K + 1 values, the first one 0

    @classmethod
    def from_alphas(cls, alphas_cumprod: Alphas) -> "DiffusionSchedule":
        """Build the schedule from cumulative alphas in decreasing order; ValueError where they are not in [0, 1) or do
        not decrease.
        """
        alphas = alphas_cumprod.double()
        if not (alphas.min() >= 0 and alphas.max() < 1 and bool((alphas.diff() < 0).all())):  # NaN is refused, too
            raise ValueError("cumulative alphas must lie in [0, 1) and decrease strictly")
        angles = torch.atan2((1 - alphas).sqrt(), alphas.sqrt())
        return cls(torch.cat([angles.new_zeros(1), angles]))

    @property
    def steps(self) -> int:
        """Number K of the teacher's discrete steps."""
        return len(self.angles) - 1

    def angle(self, t: Times) -> Times:
        """Angle at times in [0, 1], radians; ValueError outside."""
        check_times(t)
        return _interpolate(t * self.steps, torch.arange(self.steps + 1, dtype=torch.float64), self.angles)

    def signal(self, t: Times) -> Times:
        """Signal level s_t = sqrt(A_t) with A_t the cumulative alpha."""
        return self.angle(t).cos()

    def noise(self, t: Times) -> Times:
        """Noise level n_t = sqrt(1 - A_t)."""
        return self.angle(t).sin()

    def time_of(self, angle: Times) -> Times:
        """Time at which the schedule has the given angle, clamped to [0, 1]."""
        return _interpolate(angle, self.angles, torch.arange(self.steps + 1, dtype=torch.float64)) / self.steps

    def timestep(self, t: Times) -> Times:
        """Timestep k = t K - 1; times before the first step give 0."""
        return (t * self.steps - 1).clamp(min=0)

    def input_scale(self, angle: Times) -> Times:
        """Factor 1: points of unit length are the network's inputs."""
        return torch.ones_like(angle)

    def sampling_times(self, steps: int) -> Grid:
        """Times of `steps` jumps in trailing spacing (diffusers' `timestep_spacing="trailing"`), from 1 to 0."""
        _check_steps(steps, self.steps)
        stride = (self.steps - self.steps / steps) - self.steps  # rounds as numpy.arange, hence diffusers, does
        knots = [round(self.steps + i * stride) for i in range(steps)]
        return torch.tensor([*knots, 0], dtype=torch.float64) / self.steps


@dataclass(frozen=True, slots=True)
class FlowSchedule(Schedule):
    """The straight schedule s_t = 1 - t, n_t = t of flow-matching teachers (2209.03003; SD3, Flux).

    The static `shift` moves the times at which samplers ask (2403.03206, equation 23), not the schedule.
    """

    steps: int = 1000  # number K of discrete steps; the timestep is t K
    shift: float = 1.0  # shift of sampling times, greater than 0; 1 is none

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise ValueError(f"the shift of a flow-matching schedule is greater than 0, found {self.shift}")

    def angle(self, t: Times) -> Times:
        """Angle arctan(t / (1 - t)) at times in [0, 1], radians; ValueError outside."""
        check_times(t)
        return torch.atan2(t, 1 - t)

    def signal(self, t: Times) -> Times:
        """Signal level 1 - t."""
        check_times(t)
        return 1 - t

    def noise(self, t: Times) -> Times:
        """Noise level t."""
        check_times(t)
        return t

    def time_of(self, angle: Times) -> Times:
        """Time at which the schedule has the given angle, clamped to [0, 1]."""
        angle = angle.clamp(0, pi / 2)
        return angle.sin() / (angle.sin() + angle.cos())

    def timestep(self, t: Times) -> Times:
        """Timestep t K, as diffusers' flow-matching schedulers count."""
        return t * self.steps

    def input_scale(self, angle: Times) -> Times:
        """Factor 1 / (sin + cos): the length of the network's input (1 - t) x_0 + t e."""
        return 1 / (angle.sin() + angle.cos())

    def sampling_times(self, steps: int) -> Grid:
        """Times of `steps` jumps, evenly spaced from 1 to 0 and then shifted: shift t / (1 + (shift - 1) t)."""
        _check_steps(steps, self.steps)
        t = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
        return self.shift * t / (1 + (self.shift - 1) * t)


def cumulative_alphas(betas: Alphas) -> Alphas:
    """Cumulative alphas A_t, the product of 1 - beta up to and including each step (2006.11239)."""
    return (1 - betas.double()).cumprod(0)


def linear_alphas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Alphas:
    """Cumulative alphas of betas evenly spaced from `start` to `end` (Ho et al. 2006.11239)."""
    return cumulative_alphas(torch.linspace(start, end, steps, dtype=torch.float64))


def scaled_linear_alphas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Alphas:
    """Cumulative alphas of betas whose roots are evenly spaced (Rombach et al. 2112.10752); the defaults are Stable
    Diffusion's.
    """
    return cumulative_alphas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)


def cosine_alphas(steps: int = 1000) -> Alphas:
    """Cumulative alphas cos^2((t + 0.008) / 1.008 * pi / 2) with betas of at most 0.999 (Nichol & Dhariwal 2102.09672,
    equation 17); diffusers calls it `squaredcos_cap_v2`.
    """
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    level = torch.cos((t + 0.008) / 1.008 * pi / 2) ** 2
    return cumulative_alphas((1 - level[1:] / level[:-1]).clamp(max=0.999))


def zero_terminal_snr(alphas: Alphas) -> Alphas:
    """Shift and scale the signal levels sqrt(A_t) so that the last one is 0 and the first one stays (Lin et al.
    2305.08891, algorithm 1).
    """
    signal = alphas.double().sqrt()
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def at_hand(values: Tensor) -> bool:
    """Whether a tensor is on the CPU, where its values can be read without waiting for a device; only such values are
    checked.
    """
    return values.device.type == "cpu"


def check_times(t: Times) -> None:
    """Refuse, with ValueError, a tensor that is not float64, of shape (batch,) and within [0, 1]; values are checked
    only where they are on the CPU.
    """
    outside = at_hand(t) and not bool(((t >= 0) & (t <= 1)).all())
    if t.dtype != torch.float64 or t.ndim != 1 or outside:
        shown = t.flatten()[:4].tolist() if at_hand(t) else f"on {t.device}"
        raise ValueError(
            "times are float64, of shape (batch,), and lie in [0, 1]; "
            f"found {t.dtype}, shape {tuple(t.shape)}, values {shown}: "
            "write for example torch.full((batch,), 0.5, dtype=torch.float64)"
        )


def _check_steps(steps: int, most: int) -> None:
    if not 1 <= steps <= most:
        raise ValueError(f"a sampler takes 1 to {most} steps, found {steps}")


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation, constant outside the knots, on x's device."""
    knots, values = knots.to(x.device, non_blocking=True), values.to(x.device, non_blocking=True)
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    x_l, x_r = knots[right - 1], knots[right]
    fraction = ((x - x_l) / (x_r - x_l)).clamp(0, 1)
    return torch.lerp(values[right - 1], values[right], fraction)
