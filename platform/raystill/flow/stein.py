"""The Time Sampler (RayFlow 2503.07699): a proposal fitted to p xi by a stochastic Stein discrepancy.

Departures from the paper, whose code is not public and whose text was not available: the whole construction is that of
method.md, section 4. In u = logit(v) the target's score needs no normalising constant and Stein's identity no boundary
term, since its density picks up the factor v (1 - v).
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import Law, LearnedTimes, Outputs
from raystill.flow.randomness import RandomStream
from raystill.flow.regressor import Curves, spline, spline_slope
from raystill.flow.schedules import Times
from raystill.flow.times import TimeDraw, inside

Components = Float[Tensor, "batch components"]
Pairs = Float[Tensor, "batch points points"]
FARTHEST = 8.0  # of a component's mean from 0, in u: v within 0.0003 of either end
NARROWEST, WIDEST = 0.02, 2.5  # of a component's standard deviation in u; uniform v has 1.81


@dataclass(frozen=True, slots=True)
class LogisticNormalMixture:
    """Mixtures of logistic-normals: u = logit(v) ~ sum_k w_k N(m_k, s_k^2) for each sample, float64."""

    log_weights: Components
    means: Components
    stds: Components

    def quantile(self, shares: Times) -> Times:
        """Choose a component by the share, then its normal number by what is left of it."""
        weights = self.log_weights.exp()
        ends = weights.cumsum(dim=1)
        k = torch.searchsorted(ends, shares[:, None].contiguous(), right=True).clamp(max=weights.shape[1] - 1)
        weight = weights.gather(1, k)
        rest = inside((shares[:, None] - ends.gather(1, k) + weight) / weight)
        u = self.means.gather(1, k) + self.stds.gather(1, k) * torch.special.ndtri(rest)
        return torch.sigmoid(u)[:, 0]

    def density(self, v: Curves) -> Curves:
        """sum_k w_k N(logit v; m_k, s_k^2) / (v (1 - v))."""
        v = inside(v)
        z = (torch.logit(v)[..., None] - self.means[:, None]) / self.stds[:, None]
        logs = self.log_weights[:, None] - 0.5 * z.square() - self.stds[:, None].log() - 0.5 * math.log(2 * math.pi)
        return torch.logsumexp(logs, dim=-1).exp() / (v * (1 - v))

    def particles(self, z: Float[Tensor, "batch components draws"]) -> Float[Tensor, "batch points"]:
        """Reparameterised draws u of every component from standard normal numbers."""
        return (self.means[..., None] + self.stds[..., None] * z).flatten(1)


def stein_kernel(u: Curves, score: Curves, bandwidth: float) -> Pairs:
    """Langevin Stein kernel s s' k + s dk/du' + s' dk/du + d2k/du du' of the inverse multiquadric
    k = (c^2 + (u - u')^2)^(-1/2) (Gorham & Mackey 1703.01717) for all pairs of points.
    """
    d = u[:, :, None] - u[:, None, :]
    base = bandwidth**2 + d.square()
    k = base.rsqrt()
    slope = d * k**3  # dk/du' = -dk/du
    mixed = k**3 - 3 * d.square() * k**5
    s, s_other = score[:, :, None], score[:, None, :]
    return s * s_other * k + (s - s_other) * slope + mixed


def stein_discrepancy(log_weights: Components, u: Curves, score: Curves, bandwidth: float) -> Float[Tensor, " batch"]:
    """Unbiased squared kernel Stein discrepancy of mixtures from the target whose score is given at their particles.

    Particles stand by components, equally many and at least two of each. Choosing a component cannot be
    differentiated, so every component has its own particles, which count by its weight; none is paired with itself.
    """
    components = log_weights.shape[1]
    n = u.shape[1] // components
    weights = log_weights.exp().repeat_interleave(n, dim=1)
    of = torch.arange(components, device=u.device).repeat_interleave(n)
    same = (of[:, None] == of[None, :]).to(u)
    pairs = (1 - same) / n**2 + (same - torch.eye(len(of), device=u.device, dtype=u.dtype)) / (n * (n - 1))
    kernel = stein_kernel(u, score, bandwidth) * pairs
    return torch.einsum("bi,bij,bj->b", weights, kernel, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteinTimes(LearnedTimes):
    """The faithful Time Sampler: a mixture of logistic-normals q(t | x_0, mu) that minimises a stochastic Stein
    discrepancy (Gorham et al. 2007.02857) from p xi_hat.

    Stochastic: a step evaluates the scores of a random subset of its instances only.
    """

    knots: int = introduced(10)  # coefficients of the spline of log xi^2
    components: int = introduced(8)  # K
    bandwidth: float = introduced(1.0)  # c of the kernel, in u
    subset: int = introduced(8)  # instances of a batch whose scores are evaluated
    draws: int = introduced(4)  # per component and instance

    def __post_init__(self) -> None:
        LearnedTimes.__post_init__(self)
        for name, value, least in (
            ("knots", self.knots, 4), ("components", self.components, 1), ("subset", self.subset, 1),
            ("draws", self.draws, 2),
        ):  # fmt: skip
            if value < least:
                raise UserError(f"{name} of Stein times is {value}; write at least {least}")
        if not self.bandwidth > 0:
            raise UserError(f"the bandwidth of Stein times is {self.bandwidth}; it is greater than 0, for example 1")

    def start(self) -> Float[Tensor, " outputs"]:
        """The spline's coefficients, then logits, means and widths of components that together are nearly p."""
        v = midpoints(self.components)
        stds = 1 / (self.components * v * (1 - v))  # a component is as wide as its share of v, brought to u
        widths = torch.logit(((stds - NARROWEST) / (WIDEST - NARROWEST)).clamp(max=0.9))
        means = FARTHEST * torch.atanh(torch.logit(v) / FARTHEST)
        return torch.cat([torch.zeros(self.knots + self.components), means, widths])

    def log_xi_square(self, outputs: Outputs, v: Curves) -> Curves:
        """The spline."""
        return spline(outputs[:, : self.knots], v)

    def law(self, outputs: Outputs) -> Law:
        """The mixture."""
        return self.mixture(outputs)

    def mixture(self, outputs: Outputs) -> LogisticNormalMixture:
        """The mixture that a network's outputs stand for.

        Means and widths are bounded, because the discrepancy vanishes for an ever wider proposal too: in the
        tails the target's score tends to -1 or 1, and the kernel of distant particles to 0.
        """
        logits, means, widths = outputs[:, self.knots :].chunk(3, dim=1)
        stds = NARROWEST + (WIDEST - NARROWEST) * torch.sigmoid(widths)
        return LogisticNormalMixture(torch.log_softmax(logits, dim=1), FARTHEST * torch.tanh(means / FARTHEST), stds)

    def score(self, outputs: Outputs, u: Curves) -> Curves:
        """d/du log [xi_hat(v) v (1 - v)] at v = sigmoid(u), with xi_hat as it is."""
        v = torch.sigmoid(u)
        slope = spline_slope(outputs[:, : self.knots].detach(), v) / 2
        return slope * v * (1 - v) + 1 - 2 * v

    def discrepancy(self, outputs: Outputs, rng: RandomStream) -> Float[Tensor, " subset"]:
        """Squared Stein discrepancies of a random subset of the batch."""
        chosen = rng.permutation(len(outputs))[: self.subset].to(outputs.device, non_blocking=True)
        z = rng.normal((len(chosen), self.components, self.draws), torch.float64)
        some = outputs[chosen]
        mixture = self.mixture(some)
        u = mixture.particles(z.to(outputs.device, non_blocking=True))
        return stein_discrepancy(mixture.log_weights, u, self.score(some, u), self.bandwidth)

    def losses(self, outputs: Outputs, draw: TimeDraw, losses: Times, rng: RandomStream) -> dict[str, Tensor]:
        """The regressor's deviance, and the proposal's discrepancy from p times the regressor."""
        learned = LearnedTimes.losses(self, outputs, draw, losses, rng)
        return {**learned, "stein": self.discrepancy(outputs.double(), rng).mean()}
