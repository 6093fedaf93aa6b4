"""The Time Sampler (RayFlow 2503.07699): a proposal fitted to p xi by a kernel Stein discrepancy.

Departures from the paper, whose code is not public and whose text was not available: the whole construction is
raystill's own. In u = logit(v) the target's score needs no normalising constant and Stein's identity no boundary term,
since the target's density picks up the factor v (1 - v).

RayFlow names the *stochastic* Stein discrepancy of Gorham et al. (2007.02857). There the target's log density is a sum
of very many terms (one per datum), and every point's score is estimated from a random subset of them; the theorems say
that such a discrepancy still detects convergence. The discrepancy here is another one, the plain one of Gorham & Mackey
(1703.01717): this target's log density has three terms, all of which are evaluated at every point. Since u is one
number, the discrepancy is integrated on a grid and not estimated from draws. Random are only the instances of a batch,
over which the discrepancy is averaged, and the regressor xi_hat, which stands for the unknown target. Neither paper's
theorems hold: a score that tends to 1 and -1 does not pull distant points back as they ask, and the discrepancy
vanishes for an ever wider proposal, too. Therefore means and widths are bounded.

The discrepancy hardly depends on mixing weights: it knows the target by its score alone, and scores at two modes with
little mass between them do not say how much mass each mode holds. So the discrepancy fits means and widths, and the
weights are the components' shares of the regressor's mass.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import Law, LearnedTimes, Outputs
from raystill.flow.regressor import Curves, spline, spline_slope
from raystill.flow.schedules import Times
from raystill.flow.times import TimeDraw, inside

Components = Float[Tensor, "batch components"]
Parts = Float[Tensor, "batch points components"]
FARTHEST = 6.0  # largest distance of a component's mean from 0, in u: v within 0.0025 of either end
NARROWEST, WIDEST = 0.15, 2.0  # bounds of a component's standard deviation in u; uniform v has 1.81
EDGE, POINTS = 10.0, 101  # end and size of the grid of u, whose spacing 0.2 integrates the narrowest component to 1e-4
ROUNDS = 4  # iterations of expectation and maximisation; with 32, small components starve before they have moved
LEAST = 1e-12  # least weight of a component, and least density that a mass is divided by


@dataclass(frozen=True, slots=True)
class LogisticNormalMixture:
    """Mixtures of logistic-normals: u = logit(v) ~ sum_k w_k N(m_k, s_k^2) for each sample, float64."""

    weights: Components
    means: Components
    stds: Components

    def quantile(self, shares: Times) -> Times:
        """Draws of v: each share chooses a component, and what is left of the share gives the normal number within
        it.
        """
        ends = self.weights.cumsum(dim=1)
        k = torch.searchsorted(ends, shares[:, None].contiguous(), right=True).clamp(max=ends.shape[1] - 1)
        weight = self.weights.gather(1, k)
        rest = inside((shares[:, None] - ends.gather(1, k) + weight) / weight)
        u = self.means.gather(1, k) + self.stds.gather(1, k) * torch.special.ndtri(rest)
        return torch.sigmoid(u)[:, 0]

    def density(self, v: Curves) -> Curves:
        """Densities of v, sum_k w_k N(logit v; m_k, s_k^2) / (v (1 - v))."""
        v = inside(v)
        return self.logit_density(torch.logit(v)) / (v * (1 - v))

    def logit_density(self, u: Curves) -> Curves:
        """Densities of u, sum_k w_k N(u; m_k, s_k^2)."""
        return torch.einsum("bk,bpk->bp", self.weights, normal_density(u, self.means, self.stds))


def normal_density(u: Curves, means: Components, stds: Components) -> Parts:
    """Normal densities N(u; m_k, s_k^2) at every point for every component."""
    z = (u[..., None] - means[:, None]) / stds[:, None]
    return torch.exp(-0.5 * z.square()) / (math.sqrt(2 * math.pi) * stds[:, None])


@torch.no_grad()
def fitted_weights(mass: Curves, parts: Parts) -> Components:
    """Weights of given components, sum 1, fitted to a target's masses at points by `ROUNDS` iterations of expectation
    and maximisation from equal weights.

    Weights are held while the components move: no gradient.
    """
    weights = torch.full_like(parts[:, 0], 1 / parts.shape[2])
    for _ in range(ROUNDS):
        explained = torch.einsum("bk,bpk->bp", weights, parts).clamp(min=LEAST)
        weights = weights * torch.einsum("bp,bpk->bk", mass / explained, parts)
    weights = weights.clamp(min=LEAST)
    return weights / weights.sum(dim=1, keepdim=True)


def stein_discrepancy(
    u: Float[Tensor, " points"], mass: Curves, score: Curves, bandwidth: float
) -> Float[Tensor, " batch"]:
    """Squared kernel Stein discrepancy sum_ij q_i q_j k_p(u_i, u_j) of masses q at points from the target whose score s
    is given there.

    k_p is the Langevin Stein kernel s s' k + s dk/du' + s' dk/du + d2k/du du' of the inverse multiquadric
    k = (c^2 + (u - u')^2)^(-1/2) (Gorham & Mackey 1703.01717). Its tables are those of the points alone: a batch costs
    three products of matrices.
    """
    d = u[:, None] - u
    k = (bandwidth**2 + d.square()).rsqrt()
    slope = d * k**3  # dk/du' = -dk/du
    mixed = k**3 - 3 * d.square() * k**5
    pull = score * mass
    return (pull * (pull @ k) + 2 * mass * (pull @ slope) + mass * (mass @ mixed)).sum(dim=1)


def grid(like: Tensor) -> Float[Tensor, " points"]:
    """Evenly spaced points of u from -EDGE to EDGE, on a tensor's device and in its dtype."""
    return torch.linspace(-EDGE, EDGE, POINTS, device=like.device, dtype=like.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class SteinTimes(LearnedTimes):
    """The Time Sampler as the paper describes it: a mixture of logistic-normals q(t | x_0, mu) whose means and widths
    minimise a Stein discrepancy from p xi_hat, and whose weights are xi_hat's own masses (module docstring).
    """

    revision: ClassVar[int] = 2  # 2: learns from squared gradients; weights from the regressor, no draws

    knots: int = introduced(10)  # number of coefficients of the spline of log xi^2
    components: int = introduced(8)  # K, number of components of the mixture
    bandwidth: float = introduced(1.0)  # c of the kernel, in units of u

    def __post_init__(self) -> None:
        LearnedTimes.__post_init__(self)
        for name, value, least in (("knots", self.knots, 4), ("components", self.components, 1)):
            if value < least:
                raise UserError(f"{name} of Stein times is {value}; write at least {least}")
        if not self.bandwidth > 0:
            raise UserError(f"the bandwidth of Stein times is {self.bandwidth}; it is greater than 0, for example 1")

    def start(self) -> Float[Tensor, " outputs"]:
        """The spline's coefficients, then means and widths of components that together are nearly p."""
        v = midpoints(self.components)
        stds = 1 / (self.components * v * (1 - v))  # a component is as wide as its share of v, brought to u
        widths = torch.logit(((stds - NARROWEST) / (WIDEST - NARROWEST)).clamp(max=0.9))
        means = FARTHEST * torch.atanh(torch.logit(v) / FARTHEST)
        return torch.cat([torch.zeros(self.knots), means, widths])

    def log_xi_square(self, outputs: Outputs, v: Curves) -> Curves:
        """The spline of log xi^2 at v."""
        return spline(outputs[:, : self.knots], v)

    def law(self, outputs: Outputs) -> Law:
        """The mixture of each sample."""
        return self.mixture(outputs)

    def mixture(self, outputs: Outputs) -> LogisticNormalMixture:
        """The mixtures whose means and widths a network's outputs give, with weights fitted to xi_hat's masses."""
        means, widths = outputs[:, self.knots :].chunk(2, dim=1)
        means = FARTHEST * torch.tanh(means / FARTHEST)
        stds = NARROWEST + (WIDEST - NARROWEST) * torch.sigmoid(widths)
        u = grid(outputs).expand(len(outputs), -1)
        weights = fitted_weights(self.target_mass(outputs, u), normal_density(u, means, stds))
        return LogisticNormalMixture(weights, means, stds)

    def target_mass(self, outputs: Outputs, u: Curves) -> Curves:
        """The target's masses xi_hat(v) v (1 - v) at evenly spaced points u, v = sigmoid(u), scaled to sum 1."""
        log_xi = self.log_xi_square(outputs, torch.sigmoid(u)) / 2
        return torch.softmax(log_xi + logsigmoid(u) + logsigmoid(-u), dim=1)

    def score(self, outputs: Outputs, u: Curves) -> Curves:
        """The target's score d/du log [xi_hat(v) v (1 - v)] at v = sigmoid(u); no gradient passes into xi_hat."""
        v = torch.sigmoid(u)
        slope = spline_slope(outputs[:, : self.knots].detach(), v) / 2
        return slope * v * (1 - v) + 1 - 2 * v

    def discrepancy(self, outputs: Outputs) -> Float[Tensor, " batch"]:
        """Squared Stein discrepancies of a batch's mixtures from their targets."""
        points = grid(outputs)
        u = points.expand(len(outputs), -1)
        mass = self.mixture(outputs).logit_density(u) * (2 * EDGE / (POINTS - 1))
        return stein_discrepancy(points, mass, self.score(outputs, u), self.bandwidth)

    def losses(self, outputs: Outputs, draw: TimeDraw, squares: Times) -> dict[str, Tensor]:
        """Losses by name: the regressor's deviance, and the mixture's Stein discrepancy from p xi_hat."""
        learned = LearnedTimes.losses(self, outputs, draw, squares)
        return {**learned, "stein": self.discrepancy(outputs.double()).mean()}
