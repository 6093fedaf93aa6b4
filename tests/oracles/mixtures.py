"""A Gaussian mixture as a teacher known in closed form: the truth that solvers and students are tested against."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Generator, Tensor

from raystill.flow.paths import Coefficients
from raystill.flow.predictions import Coefficient, Kind, Latent, Prediction, check_data, column
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
        """Mean E[x_0 | x] for x = signal x_0 + noise e: Wiener estimates of the components, weighted by their
        responsibilities.
        """
        share = torch.softmax(self._log_joint(x, signal, noise), dim=1)
        s, n = signal[:, None], noise[:, None]
        gain = s * self.variances / (s**2 * self.variances + n**2)
        means = self.means + gain * (x[:, None] - s * self.means)
        return (share[:, :, None, None, None] * means).sum(dim=1)

    def score(self, x: Latent, signal: Coefficient, noise: Coefficient) -> Latent:
        """Gradient of `log_density` in x; finite at noise = 0 where every variance is positive."""
        share = torch.softmax(self._log_joint(x, signal, noise), dim=1)
        s, n = signal[:, None], noise[:, None]
        pulls = (s * self.means - x[:, None]) / (s**2 * self.variances + n**2)
        return (share[:, :, None, None, None] * pulls).sum(dim=1)

    def data_on(self, x: Latent, c: Coefficients, target_mean: Latent | None = None) -> Latent:
        """Mean E[x_0 | x_t], or E[x_0 | x_t, mu] where the target mean is given, at points of any path.

        Without a given target mean, mu ~ N(0, I) is independent of x_0 and one noise with the path's own, of size
        hypot(mean, noise).
        """
        return self.posterior_mean(*_as_diffusion(x, c, target_mean))

    def score_on(self, x: Latent, c: Coefficients, target_mean: Latent | None = None) -> Latent:
        """Gradient in x_t of log p(x_t), or of log p(x_t | mu) where the target mean is given, at points of any
        path.
        """
        return self.score(*_as_diffusion(x, c, target_mean))

    def _log_joint(self, x: Latent, signal: Coefficient, noise: Coefficient) -> Float[Tensor, "batch components"]:
        """Log of w_k N(x; s m_k, s^2 v_k + n^2)."""
        s, n = signal[:, None], noise[:, None]
        variance = s**2 * self.variances + n**2
        terms = (x[:, None] - s * self.means) ** 2 / variance + torch.log(2 * math.pi * variance)
        return self.weights.log() - 0.5 * terms.sum(dim=(2, 3, 4))


@dataclass(frozen=True, slots=True)
class MixtureDenoiser:
    """The exact denoiser E[x_0 | x] of a mixture on a schedule, where x_0 is paired with independent noise; predictions
    are of the given kind.
    """

    mixture: Mixture
    schedule: Schedule
    kind: Kind = "epsilon"

    def __call__(self, x: Latent, t: Times) -> Prediction:
        """Predict at variance-preserving points x of times t, float64, shape (batch,)."""
        return self.at_angle(x, self.schedule.angle(t))

    def at_angle(self, x: Latent, angle: Times) -> Prediction:
        """Predict at variance-preserving points given by their angles, radians, shape (batch,); ValueError where a
        noise prediction is asked about pure noise.

        The noise is -n times the score (Tweedie), which stays finite at clean data.
        """
        check_data(self.kind, angle)
        signal, noise = column(angle.cos(), x), column(angle.sin(), x)
        data = self.mixture.posterior_mean(x, signal, noise)
        epsilon = -noise * self.mixture.score(x, signal, noise)
        value = {
            "sample": data,
            "epsilon": epsilon,
            "v_prediction": signal * epsilon - noise * data,
            "flow_prediction": epsilon - data,
        }[self.kind]
        return Prediction(self.kind, value, x, signal, noise)

    def on_path(self, x: Latent, c: Coefficients) -> Prediction:
        """Predict at points of any path by asking at the same signal-to-noise ratio, as `models.denoiser` does."""
        return self.at_angle(x / column(c.norm, x), c.angle)


def _as_diffusion(x: Latent, c: Coefficients, target_mean: Latent | None) -> tuple[Latent, Coefficient, Coefficient]:
    """Point, signal and noise of the equivalent x = signal x_0 + noise e: mu counts as noise, or is taken away."""
    if target_mean is None:
        return x, column(c.data, x), column(torch.hypot(c.mean, c.noise), x)
    return x - column(c.mean, x) * target_mean, column(c.data, x), column(c.noise, x)
