"""Noise schedules of variance-preserving teachers as continuous functions of time.

Glossary: `signal` is s_t = sqrt(A_t) with A_t the cumulative alpha, `noise` is n_t = sqrt(1 - A_t), `angle` is
arctan(n_t / s_t). None of them is RayFlow's variance coefficient sigma, which belongs to a path (`flow.paths`).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Times = Float[Tensor, " batch"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A variance-preserving schedule through the teacher's K discrete steps; step k sits at time t = (k + 1) / K and
    data at t = 0.

    Between the knots the angle is interpolated linearly, which stays finite where the signal vanishes (zero terminal
    SNR).
    """

    angles: Float[Tensor, " knots"]  # radians, float64, increasing, K + 1 values, the first one 0

    @classmethod
    def from_alphas(cls, alphas_cumprod: Float[Tensor, " steps"]) -> "Schedule":
        """Build the schedule from cumulative alphas in decreasing order; ValueError where they are not in [0, 1) or do
        not decrease.
        """
        alphas = alphas_cumprod.double()
        if alphas.min() < 0 or alphas.max() >= 1 or bool((alphas.diff() >= 0).any()):
            raise ValueError("cumulative alphas must lie in [0, 1) and decrease strictly")
        angles = torch.atan2((1 - alphas).sqrt(), alphas.sqrt())
        return cls(torch.cat([angles.new_zeros(1), angles]))

    @property
    def steps(self) -> int:
        """Number K of the teacher's discrete steps."""
        return len(self.angles) - 1

    def angle(self, t: Times) -> Times:
        """Angle at times in [0, 1], radians; ValueError outside."""
        # Times are drawn on the CPU: this waits for no device.
        if t.dtype != torch.float64 or bool(((t < 0) | (t > 1)).any()):
            raise ValueError("times are float64 and lie in [0, 1]")
        return _interpolate(t * self.steps, torch.arange(self.steps + 1, dtype=torch.float64), self.angles)

    def signal(self, t: Times) -> Times:
        """Signal level s_t, dimensionless."""
        return self.angle(t).cos()

    def noise(self, t: Times) -> Times:
        """Noise level n_t, dimensionless."""
        return self.angle(t).sin()

    def time_of(self, angle: Times) -> Times:
        """Invert `angle`: the time at which the schedule has the given angle, clamped to [0, 1]."""
        return _interpolate(angle, self.angles, torch.arange(self.steps + 1, dtype=torch.float64)) / self.steps

    def timestep(self, t: Times) -> Times:
        """Real-valued timestep k = t K - 1 that a network trained on the discrete steps is asked with; times before the
        first step give 0.
        """
        return (t * self.steps - 1).clamp(min=0)


def trailing_times(schedule: Schedule, steps: int) -> Float[Tensor, " steps_and_end"]:
    """Times of `steps` jumps with trailing spacing (diffusers' `timestep_spacing="trailing"`), from 1 to 0, `steps + 1`
    values.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"a sampler takes 1 to {schedule.steps} steps, found {steps}")
    stride = (schedule.steps - schedule.steps / steps) - schedule.steps  # rounds as numpy.arange, hence diffusers, does
    knots = [round(schedule.steps + i * stride) for i in range(steps)]
    return torch.tensor([*knots, 0], dtype=torch.float64) / schedule.steps


def _interpolate(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Piecewise linear interpolation, constant outside the knots."""
    right = torch.searchsorted(knots, x.contiguous()).clamp(1, len(knots) - 1)
    x_l, x_r = knots[right - 1], knots[right]
    fraction = ((x - x_l) / (x_r - x_l)).clamp(0, 1)
    return torch.lerp(values[right - 1], values[right], fraction)
