"""Where on its path a training step looks: samplers of times with the weights that keep the loss unbiased."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from raystill.flow.paths import Path, times_at
from raystill.flow.schedules import Schedule, Times


class TimeDraw(NamedTuple):
    """Times in [0, 1] and importance weights, float64, shape (batch,) each."""

    t: Times
    weight: Tensor


@runtime_checkable  # so that tests can check annotations
class TimeSampler(Protocol):
    """Draws times for a batch; an implementation is its own settings."""

    def draw(self, count: int, path: Path, schedule: Schedule, rng: Generator) -> TimeDraw:
        """Draw `count` times with weights of mean 1 under the sampler's own law; `rng` is a CPU generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformTimes:
    """Stratified uniform times: one in each of `count` equal bins, so that every batch covers the path."""

    def draw(self, count: int, path: Path, schedule: Schedule, rng: Generator) -> TimeDraw:
        """Draw times with weight 1."""
        jitter = torch.rand(count, generator=rng, dtype=torch.float64)
        t = (torch.randperm(count, generator=rng) + jitter) / count
        return TimeDraw(t, torch.ones_like(t))


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingTimes:
    """Only the times at which a sampler of `steps` steps (and of every divisor of it) asks the student, trailing
    spacing.

    The times are those whose signal-to-noise ratio is the stock timestep's; the start gets `start_share` of the draws,
    the others share the rest. Weights are 1: this is a choice of objective (the sampler's own times), not an importance
    law for another one.
    """

    steps: int = 8
    start_share: float = (
        0.3  # share of draws at the start of sampling, the only point that a one-step sample depends on
    )

    def draw(self, count: int, path: Path, schedule: Schedule, rng: Generator) -> TimeDraw:
        """Draw times with weight 1."""
        angles = schedule.angle(schedule.sampling_times(self.steps)[:-1])
        grid = times_at(path, schedule, angles)
        rest = torch.full((self.steps,), (1 - self.start_share) / max(self.steps - 1, 1), dtype=torch.float64)
        rest[0] = self.start_share if self.steps > 1 else 1.0
        t = grid[torch.multinomial(rest, count, replacement=True, generator=rng)]
        return TimeDraw(t, torch.ones_like(t))
