"""Learned importance laws of training times: the family of RayFlow's Time Sampler (2503.07699) and its peers.

The loss is an integral over a fixed law p of times. Drawn from q instead and weighted by p / q it is unbiased, and its
gradient's second moment is least for

    q*(t | x_0, mu) proportional to p(t) xi,    xi^2 = E[|| grad loss ||^2 | t, x_0, mu],

for which the gradient in the network's output stands in here, known in closed form for every loss
(`Objective.gradient_square`). Everything is written in v = F_p(t), the quantile of the time in p: p is then uniform on
[0, 1], discrete laws included, and densities are relative to it. With uniform times v is t.

A law is learned by a network of its own, the role `time_sampler`: its gradients are averaged over ranks and its state
is checkpointed as any role's are, so that it is the same on every rank and a resumed run equals an uninterrupted one.
Times stay on the network's device: drawing and learning need no host-device synchronisation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.efficiency import midpoints
from raystill.flow.paths import Path
from raystill.flow.predictions import Latent
from raystill.flow.randomness import RandomStream
from raystill.flow.regressor import (
    FEATURES_PER_CHANNEL,
    Curves,
    Features,
    TimeNetwork,
    deviance,
    instance_features,
    spline,
)
from raystill.flow.schedules import Schedule, Times
from raystill.flow.times import (
    FixedTimes,
    LogitNormalTimes,
    SamplingTimes,
    TimeDraw,
    UniformTimes,
    UShapedTimes,
    check_share,
    defended,
)

Outputs = Float[Tensor, "batch outputs"]  # what a TimeNetwork gives: one row per sample


@runtime_checkable  # so that tests can check annotations
class Law(Protocol):
    """A probability law of the quantile v for each sample of a batch, with a closed-form density."""

    def quantile(self, shares: Times) -> Times:
        """Map one uniform number per sample to a draw of its law."""

    def density(self, v: Curves) -> Curves:
        """Densities at points v of [0, 1]."""


@dataclass(frozen=True, slots=True)
class BinLaw:
    """Laws of v with densities that are constant in equal bins of [0, 1]; their distribution functions are inverted
    exactly.
    """

    mass: Float[Tensor, "batch bins"]  # probability of each bin; rows sum to 1, float64

    def quantile(self, shares: Times) -> Times:
        """Draws of v by inverting the piecewise linear distribution functions."""
        ends = self.mass.cumsum(dim=1)
        bins = self.mass.shape[1]
        k = torch.searchsorted(ends, shares[:, None].contiguous(), right=True).clamp(max=bins - 1)
        mass = self.mass.gather(1, k)
        into = ((shares[:, None] - ends.gather(1, k) + mass) / mass).clamp(0, 1)
        return ((k + into) / bins)[:, 0]

    def density(self, v: Curves) -> Curves:
        """Densities at v: the mass of the bin that holds v, times the number of bins."""
        bins = self.mass.shape[1]
        return self.mass.gather(1, (v * bins).long().clamp(0, bins - 1)) * bins


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnedTimes(ABC):
    """Base of the learned laws of times; an implementation's fields are its settings."""

    # the fixed law p that the loss is an integral over
    base: UniformTimes | LogitNormalTimes | UShapedTimes | SamplingTimes = introduced_group(UniformTimes)
    delta: float = introduced(0.1)  # share of draws from p itself; it bounds the weights by 1 / delta
    warmup_steps: int = introduced(20)  # first training steps, whose times are drawn from p while the law is learned
    learning_rate: float = introduced(0.05)  # learning rate of the law's own AdamW
    instance: bool = introduced(True)  # whether the law depends on the sample's (x_0, mu) or on time alone
    hidden: int = introduced(32)  # hidden width of the network that reads the instance's features

    def __post_init__(self) -> None:
        check_share("delta", self.delta)
        if self.learning_rate <= 0 or self.warmup_steps < 0 or self.hidden < 1:
            raise UserError(
                f"a learned law of times has learning_rate {self.learning_rate}, warmup_steps {self.warmup_steps} and "
                f"hidden {self.hidden}; write numbers above 0, and 0 or more warmup_steps"
            )
        if not isinstance(self.base, UniformTimes | SamplingTimes) and self.base.importance is not None:
            raise UserError(
                "the base of a learned law of times is the objective, and not itself an importance law: "
                "--set method.times.base.importance=null"
            )

    @abstractmethod
    def start(self) -> Float[Tensor, " outputs"]:
        """Outputs of the untrained network, whose law is p or nearly p."""

    @abstractmethod
    def log_xi_square(self, outputs: Outputs, v: Curves) -> Curves:
        """Learned log xi^2 at v, up to an additive constant; xi^2 is the expected squared gradient (module
        docstring).
        """

    @abstractmethod
    def law(self, outputs: Outputs) -> Law:
        """The learned law of each sample, before the share `delta` of p is mixed in."""

    def check(self, lane_size: int) -> None:
        """Refuse, with UserError, a lane size below 2: the gradients of a lane's samples are compared."""
        if lane_size < 2:
            raise UserError(
                f"a learned law of times compares the gradients of a lane: training.lane_size is {lane_size}; write 2 "
                "or more, or --set method.times=UniformTimes"
            )

    @property
    def objective(self) -> FixedTimes:
        """The law p over which the loss is an integral."""
        return self.base

    def network(self, channels: int) -> TimeNetwork:
        """An untrained network of the law, for latents of `channels` channels."""
        return TimeNetwork(self.start(), FEATURES_PER_CHANNEL * channels if self.instance else 0, self.hidden)

    def features(self, x_0: Latent, target_mean: Latent) -> Features:
        """Input features of the law's network for each sample; of width 0 where the law is one of time alone."""
        return instance_features(x_0, target_mean) if self.instance else x_0.new_zeros((len(x_0), 0))

    def density(self, outputs: Outputs, v: Curves) -> Curves:
        """Density q / p at v of the times drawn after the warm-up, the share `delta` of p included."""
        return (1 - self.delta) * self.law(outputs.detach().double()).density(v) + self.delta

    def losses(self, outputs: Outputs, draw: TimeDraw, squares: Times) -> dict[str, Tensor]:
        """Losses that train the law's network, by name, each of shape (); `squares` are the samples' squared gradients,
        without weights and up to a common factor.
        """
        place = draw.quantile.detach()[:, None]
        return {"deviance": deviance(self.log_xi_square(outputs.double(), place)[:, 0], squares)}


@dataclass(frozen=True, slots=True)
class BatchLaw:
    """A learned law of times, evaluated for one batch at one step: a TimeSampler with losses of its own."""

    settings: LearnedTimes
    outputs: Outputs
    step: int

    @torch.no_grad()
    def draw(self, count: int, path: Path, schedule: Schedule, rng: RandomStream) -> TimeDraw:
        """Draw stratified times with weights p / q, at most 1 / delta; from p, with weight 1, during the warm-up.

        Times are on the device of the network's outputs: no host-device synchronisation.
        """
        settings, outputs = self.settings, self.outputs.detach().double()
        shares = rng.stratified(count).to(outputs.device, non_blocking=True)
        if self.step < settings.warmup_steps:
            return TimeDraw(settings.base.quantile(shares, path, schedule), torch.ones_like(shares), shares)
        law = settings.law(outputs)
        v, weight = defended(shares, settings.delta, law.quantile, lambda v: law.density(v[:, None])[:, 0])
        return TimeDraw(settings.base.quantile(v, path, schedule), weight, v)

    def losses(self, draw: TimeDraw, squares: Float[Tensor, " batch"]) -> dict[str, Tensor]:
        """Losses that train the law's network on the squared gradients of this draw, by name; UserError for a batch of
        one.
        """
        self.settings.check(len(squares))
        return self.settings.losses(self.outputs, draw, squares.detach().double())


@dataclass(frozen=True, slots=True, kw_only=True)
class SecondMomentTimes(LearnedTimes):
    """A learned law with one second moment for each equal bin of v, after the sampler of Nichol & Dhariwal (2102.09672,
    section 3.3).

    Departs from the paper: the second moment is that of the gradient in the network's output and not of the loss, as
    for every law here; a table over bins is learned by gradient descent, hence kept equal over ranks, in place of the
    last ten losses of every timestep; the share of uniform times is `delta` rather than 0.1 %.
    """

    revision: ClassVar[int] = 2  # 2: learns from squared gradients, formerly from squared losses

    instance: bool = introduced(False)
    bins: int = introduced(20)  # number of equal bins of v

    def __post_init__(self) -> None:
        LearnedTimes.__post_init__(self)
        if self.bins < 2:
            raise UserError(f"second-moment times have {self.bins} bins; write 2 or more: --set method.times.bins=20")

    def start(self) -> Float[Tensor, " outputs"]:
        """Zeros: one log second moment per bin."""
        return torch.zeros(self.bins)

    def log_xi_square(self, outputs: Outputs, v: Curves) -> Curves:
        """Log second moment of the bin that holds v."""
        return outputs.gather(1, (v * self.bins).long().clamp(0, self.bins - 1))

    def law(self, outputs: Outputs) -> Law:
        """Laws whose bin masses are proportional to the square roots of the bins' second moments."""
        return BinLaw(torch.softmax(outputs / 2, dim=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class GridTimes(LearnedTimes):
    """A learned law proportional to p xi_hat: a spline of log xi^2, evaluated on a grid and inverted exactly.

    Times are drawn from the law that is constant in each cell of the grid, and weighted by that law's own density, so
    that weights are exact whatever the grid.
    """

    revision: ClassVar[int] = 2  # 2: learns from squared gradients, formerly from losses

    knots: int = introduced(10)  # number of coefficients of the spline of log xi^2
    cells: int = introduced(64)  # number of equal cells of the grid over v

    def __post_init__(self) -> None:
        LearnedTimes.__post_init__(self)
        if self.knots < 4 or self.cells < 2:
            raise UserError(f"grid times have {self.knots} knots and {self.cells} cells; write at least 4 and 2")

    def start(self) -> Float[Tensor, " outputs"]:
        """Zeros: the coefficients of the spline."""
        return torch.zeros(self.knots)

    def log_xi_square(self, outputs: Outputs, v: Curves) -> Curves:
        """The spline of log xi^2 at v."""
        return spline(outputs, v)

    def law(self, outputs: Outputs) -> Law:
        """Laws whose cell masses are proportional to xi at the cells' midpoints."""
        middles = midpoints(self.cells).to(outputs).expand(len(outputs), -1)
        return BinLaw(torch.softmax(spline(outputs, middles) / 2, dim=1))
