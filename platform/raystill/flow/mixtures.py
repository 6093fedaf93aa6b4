"""A Gaussian mixture as a teacher known in closed form: the truth that solvers and students are tested against."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from raystill.flow.predictions import Coefficient, Kind, Latent, Prediction, column
from raystill.flow.schedules import Schedule, Times


@dataclass(frozen=True, slots=True)
class Mixture:
    """Data x_0 ~ sum_k w_k N(m_k, diag(v_k)) of latent shape; everything in float64."""

    weights: Float[Tensor, " components"]
    means: Float[Tensor, "components channels height width"]
    variances: Float[Tensor, "components channels height width"]

    def __post_init__(self) -> None:
        if bool((self.weights <= 0).any()) or not math.isclose(float(self.weights.sum()), 1.0, abs_tol=1e-12):
            raise ValueError(f"weights of a mixture are positive and sum to 1, found {self.weights.tolist()}")
        if self.variances.shape != self.means.shape or bool((self.variances < 0).any()):
            raise ValueError("variances of a mixture are not negative and have the means' shape")

    @classmethod
    def random(cls, components: int, shape: tuple[int, int, int], rng: Generator) -> "Mixture":
        """Draw a mixture of unequal weights, separate means and variances between 0.01 and 0.1."""
        weights = torch.rand(components, generator=rng, dtype=torch.float64) + 0.5
        means = torch.randn((components, *shape), generator=rng, dtype=torch.float64)
        spread = torch.rand((components, *shape), generator=rng, dtype=torch.float64)
        return cls(weights / weights.sum(), means, 0.01 + 0.09 * spread)

    def draw(self, count: int, rng: Generator) -> Latent:
        """Draw `count` samples of x_0."""
        k = torch.multinomial(self.weights, count, replacement=True, generator=rng)
        noise = torch.randn((count, *self.means.shape[1:]), generator=rng, dtype=torch.float64)
        return self.means[k] + self.variances[k].sqrt() * noise

    def log_density(self, x: Latent, signal: Coefficient, noise: Coefficient) -> Float[Tensor, " batch"]:
        """Log density of x = signal x_0 + noise e, e ~ N(0, I), for any signal and noise >= 0."""
        return torch.logsumexp(self._log_joint(x, signal, noise), dim=1)

    def posterior_mean(self, x: Latent, signal: Coefficient, noise: Coefficient) -> Latent:
        """Mean E[x_0 | x] for x = signal x_0 + noise e: Wiener estimates of the components, by responsibility."""
        share = torch.softmax(self._log_joint(x, signal, noise), dim=1)
        s, n = signal[:, None], noise[:, None]
        gain = s * self.variances / (s**2 * self.variances + n**2)
        means = self.means + gain * (x[:, None] - s * self.means)
        return (share[:, :, None, None, None] * means).sum(dim=1)

    def _log_joint(self, x: Latent, signal: Coefficient, noise: Coefficient) -> Float[Tensor, "batch components"]:
        """Log of w_k N(x; s m_k, s^2 v_k + n^2)."""
        s, n = signal[:, None], noise[:, None]
        variance = s**2 * self.variances + n**2
        terms = (x[:, None] - s * self.means) ** 2 / variance + torch.log(2 * math.pi * variance)
        return self.weights.log() - 0.5 * terms.sum(dim=(2, 3, 4))


@dataclass(frozen=True, slots=True)
class MixtureDenoiser:
    """The perfect denoiser of a mixture on a schedule; answers in the given kind."""

    mixture: Mixture
    schedule: Schedule
    kind: Kind = "epsilon"

    def __call__(self, x: Latent, t: Times) -> Prediction:
        """Predict at variance-preserving points x of times t, float64, shape (batch,)."""
        return self.at_angle(x, self.schedule.angle(t))

    def at_angle(self, x: Latent, angle: Times) -> Prediction:
        """Predict at variance-preserving points given by their angles, radians, shape (batch,)."""
        signal, noise = column(angle.cos(), x), column(angle.sin(), x)
        data = self.mixture.posterior_mean(x, signal, noise)
        epsilon = (x - signal * data) / noise
        value = {
            "sample": data,
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * data,
            "flow_prediction": epsilon - data,
        }[self.kind]
        return Prediction(self.kind, value, x, signal, noise)
