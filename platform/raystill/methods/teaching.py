"""The frozen, guided teacher of a training step, for methods that ask it while they train."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.predictions import Latent, Prediction, column, point
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.methods.method import TEACHER, Batch, Given, Networks
from raystill.models.conditioning import Condition, moved
from raystill.models.denoiser import Denoiser, with_guidance


@dataclass(frozen=True, slots=True, kw_only=True)
class Guidance:
    """Scale w of the teacher's guidance, drawn for each sample uniformly from an interval; 1 is none. Papers that write
    cond + w' (cond - uncond) have w' = w - 1.
    """

    low: float = introduced(3.0)  # lowest scale w
    high: float = introduced(3.0)  # highest scale w

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"guidance goes from {self.low} to {self.high}: write a lower and a higher number, or one")

    @property
    def branches(self) -> int:
        """Evaluations of the teacher's network per sample and call."""
        return 1 if self.low == self.high == 1 else 2

    def draw(self, count: int, rng: RandomStream) -> Float[Tensor, " batch"]:
        """Random guidance scales of a batch, on the CPU."""
        return self.low + (self.high - self.low) * rng.uniform(count)


@dataclass(frozen=True, slots=True)
class Teaching:
    """The frozen teacher under a batch's captions, guided; no gradient passes through it."""

    teacher: Denoiser
    unconditional: Condition  # one row
    condition: Condition
    scale: Float[Tensor, " batch"] | None  # None: no guidance

    @classmethod
    def of(cls, networks: Networks, given: Given, batch: Batch, guidance: Guidance, rng: RandomStream) -> "Teaching":
        """The teacher under one batch's captions, with guidance scales drawn for one training step."""
        condition = batch["condition"]
        scale = guidance.draw(len(batch["x_0"]), rng) if guidance.branches == 2 else None
        teacher = given.denoiser(networks[TEACHER])
        return cls(teacher, moved(given.unconditional, batch["x_0"].device), condition, scale)

    @torch.no_grad()
    def __call__(self, x: Latent, t: Times) -> Prediction:
        """Predict at points of unit length at times t, shape (batch,); both branches in one forward."""
        if self.scale is None:
            return self.teacher(x, t, self.condition)
        return with_guidance(self.teacher, self.unconditional, column(self.scale, x), x, t, self.condition)

    def step(self, x: Latent, t: Times, r: Times) -> Latent:
        """The points at r after one DDIM step of the teacher from t."""
        return self(x, t).moved(self.teacher.schedule.angle(r))

    @torch.no_grad()
    def noisy_steps(self, x: Latent, t: Times, r: Times, *, steps: int, eta: float, rng: RandomStream) -> Latent:
        """The points at r after equal DDIM steps of the teacher from t with a share `eta` of DDPM's noise (2010.02502,
        equations 12 and 16).
        """
        schedule = self.teacher.schedule
        grid = [torch.lerp(t, r, i / steps) for i in range(steps + 1)]
        for here, there in pairwise(grid):
            share = fresh_share(schedule.angle(here), schedule.angle(there), eta)
            prediction = self(x, here)
            kept = column((1 - share**2).sqrt(), x) * prediction.epsilon + column(share, x) * fresh(x, rng)
            x = point(prediction.data, kept, schedule.angle(there))
        return x


def fresh_share(angle: Times, rest: Times, eta: float) -> Times:
    """Share of fresh noise in the noise of a step from one angle to an earlier one, for DDIM's eta: with eta = 1 the
    step is DDPM's posterior (2010.02502, equation 16); 0 where no noise is left.
    """
    variance = 1 - (angle.cos() / rest.cos()).square()
    return eta * (variance.clamp(min=0) / angle.sin().square().clamp(min=1e-12)).sqrt() * (rest > 0)


def weighted(distances: Float[Tensor, " batch"], weight: Times) -> Float[Tensor, ""]:
    """Weighted mean over a batch; weights lie on the CPU."""
    return (distances * weight.to(distances, non_blocking=True)).mean()


def any_times(count: int, rng: RandomStream, lowest: float = 0.0) -> Times:
    """Random times, uniform over [lowest, 1 - lowest] and above 0."""
    return lowest + (1 - 2 * lowest) * (1 - rng.uniform(count))


def begun(schedule: Schedule, t: Times, x_0: Latent, noise: Latent) -> Latent:
    """Points of a batch at times t as sampling would reach them: the noised latent, or at t = 1 the noise alone, with
    which sampling starts.
    """
    starts = (t == 1).to(x_0.device, non_blocking=True)[:, None, None, None]
    return torch.where(starts, noise, point(x_0, noise, schedule.angle(t)))


def fresh(like: Latent, rng: RandomStream) -> Latent:
    """N(0, I) noise of a latent's shape, drawn on the CPU."""
    return rng.normal(like.shape).to(like, non_blocking=True)
