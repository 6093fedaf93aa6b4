"""Jumps of a sampler along a path, from one time to an earlier one, and what they keep of the sampling start.

A state is a point of unit length, x = cos(angle) x_0 + sin(angle) e with e = (mean mu + noise eps) / b the path's total
noise, asked at the angles of the stock timesteps. With a prediction of x_0 and e two jumps are possible (2503.07699):

- `ode` re-estimates all of e from the present point and keeps it: DDIM (2010.02502), whatever the path;
- `anchored` knows mu since the start, re-estimates the path's own noise e_hat only, and moves mu and e_hat to the next
  time by the path's own coefficients.

So the ODE jump is the anchored one on the path without a mean (`held`), and there is one function for both.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from raystill.config.errors import UserError
from raystill.flow.paths import Coefficients, DiffusionPath, Path, interpolate, times_at
from raystill.flow.predictions import Latent, Prediction, column
from raystill.flow.schedules import FlowSchedule, Schedule, Times

Jump = Literal["ode", "anchored"]


def check_jump(jump: Jump, eta: float) -> None:
    """Refuse, with UserError, a jump that does not exist and an eta outside [0, 1]."""
    if jump not in get_args(Jump):
        raise UserError(f"the jump is {jump!r}; write one of {', '.join(get_args(Jump))}")
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}; the share of fresh noise lies in [0, 1]: write 0 for deterministic jumps")


def check_eta(path: Path, jump: Jump, eta: float) -> None:
    """Refuse, with UserError, an eta where a jump carries no noise of which a share could be fresh."""
    end = held(path, jump).coefficients(FlowSchedule(), torch.ones(1, dtype=torch.float64))
    if eta > 0 and not bool(end.noise.any()):
        raise UserError(
            f"eta is {eta}, but anchored jumps on {path} carry no noise: write eta 0, the ode jump, or a sigma > 0"
        )


def held(path: Path, jump: Jump) -> Path:
    """The path whose coefficients a jump uses: the given path, or for `ode` the diffusion path, which has no mean."""
    return DiffusionPath() if jump == "ode" else path


def stops(path: Path, schedule: Schedule, angles: Times) -> Coefficients:
    """Coefficients of the path's points at given angles, scaled to unit length: (cos, sin mean / b, sin noise / b).

    Beyond the end of a path (with `end="own"` a ray path ends below the teacher's last angle) the end's own mixture of
    mean and noise stands. Costs 60 evaluations of the path (`times_at`).
    """
    c = path.coefficients(schedule, times_at(path, schedule, angles))
    share = angles.sin() / torch.hypot(c.mean, c.noise).clamp(min=1e-300)  # at data there is no noise: 0 / 0 is 0
    return Coefficients(angles.cos(), share * c.mean, share * c.noise)


def stop(every: Coefficients, i: int, count: int) -> Coefficients:
    """Coefficients of stop number `i` of a sampling, repeated for a batch of `count` samples."""
    return Coefficients(*(values[i].expand(count) for values in every))


def has_mean(c: Coefficients) -> bool:
    """Whether the path's mean coefficient is above 0 at a stop, so that jumps carry a target mean; coefficients are on
    the CPU: no device sync.
    """
    return bool((c.mean > 0).any())


def entry(start: Latent, noise: Latent, c: Coefficients) -> Latent:
    """The point of a sampling's first network evaluation, from a start of N(0, I): (mean start + noise eps) / b.

    The start stands for the teacher's, z = s_1 x_0 + n_1 mu, and on a path without a mean for the point itself.
    """
    if not has_mean(c):
        return start
    b = torch.hypot(c.mean, c.noise)
    return column(c.mean / b, start) * start + column(c.noise / b, start) * noise


def start_mean(start: Latent, prediction: Prediction) -> Latent:
    """mu = (z - s_1 x_0) / n_1 of the teacher's start z, with the first estimate of x_0: what the `generated` estimator
    trains on; where the schedule starts at pure noise it is z.
    """
    return (start - prediction.signal * prediction.data) / prediction.noise


def path_noise(prediction: Prediction, mean: Latent, c: Coefficients) -> Latent:
    """e_hat = (x_t - data(t) x0_hat - mean(t) mu) / noise(t), the path's own noise at a point of unit length
    (2503.07699); UserError where its coefficient is 0.
    """
    if bool((c.noise <= 0).any()):  # coefficients are on the CPU: no device sync
        raise UserError(
            "a point of a path without noise (sigma = 0, or clean data) has no path noise: its coefficient is 0 there; "
            "use the anchored jump without the noise term, or a path with sigma > 0"
        )
    b = torch.hypot(c.mean, c.noise)
    return column(b / c.noise, mean) * prediction.epsilon - column(c.mean / c.noise, mean) * mean


def renewed(noise: Latent, fresh: Latent | None, eta: float) -> Latent:
    """sqrt(1 - eta^2) e_hat + eta z: noise of the same law of which a share is fresh (2503.07699); no z, no change."""
    return noise if fresh is None else (1 - eta**2) ** 0.5 * noise + eta * fresh


def jump(
    prediction: Prediction, mean: Latent, c: Coefficients, c_r: Coefficients, fresh: Latent | None, eta: float
) -> Latent:
    """x_r = data(r) x0_hat + mean(r) mu + noise(r) (sqrt(1 - eta^2) e_hat + eta z) from a stop `c` to the stop `c_r`,
    at unit length; on a path without noise the last term is absent.
    """
    if not bool(c_r.noise.any()):
        return interpolate(c_r, prediction.data, mean, mean)
    return interpolate(c_r, prediction.data, mean, renewed(path_noise(prediction, mean, c), fresh, eta))


def own_seeds(start: Latent) -> list[int]:
    """A seed for each sample from its own start's bits, so that a picture does not depend on its batch."""
    rows = start.float().cpu()  # HOST SYNC: one per sampling
    return [int.from_bytes(hashlib.sha256(row.numpy().tobytes()).digest()[:4], "big") for row in rows]


def own_noise(seeds: list[int], number: int, like: Latent) -> Latent:
    """N(0, I) noise number `number` of each sample of a batch, drawn from the samples' own seeds and shaped as
    `like`.
    """
    generators = [torch.Generator().manual_seed(seed + number) for seed in seeds]
    drawn = [torch.randn(like.shape[1:], generator=generator) for generator in generators]
    return torch.stack(drawn).to(like, non_blocking=True)


@dataclass(slots=True)
class Walk:
    """The state of one sampling of a batch along a path: its stops, and what jumps keep of the start."""

    every: Coefficients  # coefficients of all stops, from the start to data
    eta: float  # share of fresh noise in every jump
    mean: Latent | None  # the target mean: None until the first estimate of x_0; zeros on a path without a mean
    start: Latent  # the N(0, I) start; of no use where the mean is known
    noise: Latent  # the path's own noise eps at the start; of no use where the mean is known
    seeds: list[int]  # one for each sample, of its noises; empty where none are drawn

    @classmethod
    def begin(cls, every: Coefficients, eta: float, start: Latent) -> "Walk":
        """A walk from the N(0, I) starts of a batch."""
        first = stop(every, 0, len(start))
        own = has_mean(first) and bool(first.noise.any())
        seeds = own_seeds(start) if own or eta > 0 else []
        noise = own_noise(seeds, 0, start) if own else start
        return cls(every, eta, None if has_mean(first) else torch.zeros_like(start), start, noise, seeds)

    @classmethod
    def entered(cls, every: Coefficients, eta: float, point: Latent) -> "Walk":
        """A walk from points of N(0, I) at which the network was evaluated already: x = (mean z + noise eps) / b is
        split into z = (mean x + noise xi) / b and eps = (noise x - mean xi) / b, with xi from the point's own bits: a
        start and a noise of their laws.
        """
        c = stop(every, 0, len(point))
        b = torch.hypot(c.mean, c.noise)
        m, n = column(c.mean / b, point), column(c.noise / b, point)
        seeds = own_seeds(point)
        xi = own_noise(seeds, 0, point)
        return cls(every, eta, None, m * point + n * xi, n * point - m * xi, seeds)

    @classmethod
    def midway(cls, every: Coefficients, eta: float, mean: Latent) -> "Walk":
        """A walk from points inside the path that were noised from data with a known target mean."""
        seeds = own_seeds(mean) if eta > 0 else []
        return cls(every, eta, mean, mean, mean, seeds)

    def entry(self) -> Latent:
        """The points of the sampling's first network evaluation."""
        return entry(self.start, self.noise, stop(self.every, 0, len(self.start)))

    def jump(self, i: int, prediction: Prediction, fresh: Latent | None = None) -> Latent:
        """The points of stop i + 1 from a prediction at stop i; at eta > 0 with `fresh` noise, or with noise of the
        samples' own seeds where none is given.
        """
        count = len(prediction.x)
        here, there = stop(self.every, i, count), stop(self.every, i + 1, count)
        if fresh is None and self.eta > 0:
            fresh = own_noise(self.seeds, i + 1, prediction.x)
        if self.mean is not None:
            return jump(prediction, self.mean, here, there, fresh, self.eta)
        self.mean = start_mean(self.start, prediction)
        return interpolate(there, prediction.data, self.mean, renewed(self.noise, fresh, self.eta))
