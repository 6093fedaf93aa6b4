"""RayFlow (2503.07699): every sample is trained along its own path between its clean latent and its own target mean.

Departures from the paper, whose code is not public: targets are stored pairs made by the frozen teacher beforehand
(`targets`), and the student is asked by signal-to-noise matching (`Denoiser.on_path`), so that its first step
equals the teacher whatever the path.
"""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from raystill.config.fingerprint import introduced_group
from raystill.flow.importance import BatchLaw, GridTimes, LearnedTimes, SecondMomentTimes
from raystill.flow.jumps import has_mean, held
from raystill.flow.objectives import Objective, effective_noise
from raystill.flow.paths import Coefficients, DiffusionPath, PairedDiffusionPath, RayPath, StraightPath, interpolate
from raystill.flow.predictions import Latent, Prediction
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import FlowSchedule, Times
from raystill.flow.starts import StartLaw
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, TimeDraw, TimeSampler, UniformTimes, UShapedTimes
from raystill.methods.method import STUDENT, TIME_SAMPLER, Batch, Distillation, Given, Head, Loss, Networks
from raystill.models.sampling import Sampling, Scheduler, ray_scheduler
from raystill.models.stock import StockSampler


class Answers(NamedTuple):
    """A batch of predictions and the true values that an objective compares them with."""

    prediction: Prediction
    x_0: Latent
    epsilon: Latent  # effective noise of the points
    c: Coefficients  # the path's coefficients at the points


def as_rayflow(method: object) -> "RayFlow | None":
    """A method's settings where it is RayFlow, for measurements of what only RayFlow has; None for any other."""
    return method if isinstance(method, RayFlow) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RayFlow(Distillation):
    """Settings of RayFlow; the defaults are the best that were measured (`docs/results/rayflow.md`)."""

    name: ClassVar[str] = "rayflow"
    paper: ClassVar[str] = "2503.07699"
    needs: ClassVar[tuple[str, ...]] = ("x_0", "target_mean", "condition")
    asks_teacher: ClassVar[bool] = False  # its targets are stored

    path: RayPath | PairedDiffusionPath | StraightPath | DiffusionPath = introduced_group(RayPath)
    times: (
        SamplingTimes | UniformTimes | LogitNormalTimes | UShapedTimes | SecondMomentTimes | GridTimes | SteinTimes
    ) = introduced_group(partial(GridTimes, base=SamplingTimes()))
    objective: Objective = introduced_group(partial(Objective, target="data", distance="pseudo_huber"))

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that the method trains: the student, and the law of times where it is learned."""
        return (STUDENT,) if self.learned_times is None else (STUDENT, TIME_SAMPLER)

    @property
    def learned_times(self) -> LearnedTimes | None:
        """The law of times, where it is learned."""
        return self.times if isinstance(self.times, LearnedTimes) else None

    def heads(self, given: Given) -> dict[str, Head]:
        """The network of the law of times, by role, where the law is learned."""
        times = self.learned_times
        return (
            {}
            if times is None
            else {TIME_SAMPLER: Head(times.network(given.backbone.latent_shape[0]), times.learning_rate)}
        )

    def noisy(self, sampling: Sampling) -> bool:
        """Whether the method's sampler draws fresh noise: where eta > 0, or where anchored jumps follow a path with a
        mean and noise.
        """
        end = held(self.path, sampling.jump).coefficients(FlowSchedule(), torch.ones(1, dtype=torch.float64))
        return sampling.eta > 0 or (has_mean(end) and bool(end.noise.any()))

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The scheduler that samples the student on the method's path."""
        return ray_scheduler(stock, self.path, sampling, start)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, an objective or a jump that needs noise where the path has none, and lanes that are
        too small for a learned law of times.
        """
        # Teachers' schedules end at pure noise or next to it, where a ray's own noise is smallest beside its mean.
        end = self.path.coefficients(FlowSchedule(), torch.ones(1, dtype=torch.float64))
        self.objective.check(end)
        sampling.check(self.path)
        if (times := self.learned_times) is not None:
            times.check(lane_size)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss, a weighted mean over the batch of the objective at points of the samples' own paths; then
        the time sampler's loss, for which the samples' squared gradients are numbers without a graph.
        """
        x_0, path = batch["x_0"], self.path
        sampler = self._sampler(networks, x_0, batch["target_mean"], step)
        draw = sampler.draw(len(x_0), path, given.schedule, rng)
        eps = rng.normal(x_0.shape).to(x_0.device, non_blocking=True)
        answers = self.answers(given, networks[STUDENT], batch, draw.t, eps)
        losses = self.objective.per_sample(*answers)
        weighted = losses * draw.weight.to(losses, non_blocking=True)
        metrics = {"loss/student_data_mse": (answers.prediction.data.detach().float() - x_0).square().mean()}
        found = {STUDENT: Loss(weighted.mean(), metrics | time_metrics(draw, weighted.detach()), times=draw.t)}
        if isinstance(sampler, BatchLaw):
            parts = sampler.losses(draw, self.objective.gradient_square(*answers))
            own = {f"loss/{TIME_SAMPLER}_{name}": part.detach() for name, part in parts.items()}
            found[TIME_SAMPLER] = Loss(torch.stack(list(parts.values())).sum(), own, times=draw.t)
        return found

    def answers(self, given: Given, student: nn.Module, batch: Batch, t: Times, eps: Latent) -> Answers:
        """The student's predictions at times of the samples' own paths, and what they are compared with."""
        x_0, target_mean = batch["x_0"], batch["target_mean"]
        c = self.path.coefficients(given.schedule, t)
        denoiser = given.denoiser(student)
        prediction = denoiser.on_path(interpolate(c, x_0, target_mean, eps), c, batch["condition"])
        return Answers(prediction, x_0, effective_noise(c, target_mean, eps), c)

    def _sampler(self, networks: Networks, x_0: Latent, target_mean: Latent, step: int) -> TimeSampler:
        """The sampler of this batch's times: the fixed law, or the learned law evaluated for the batch."""
        times = self.times
        if not isinstance(times, LearnedTimes):
            return times
        return BatchLaw(times, networks[TIME_SAMPLER](times.features(x_0, target_mean)), step)


def time_metrics(draw: TimeDraw, weighted: Float[Tensor, " batch"]) -> dict[str, Tensor]:
    """Metrics of a law of times on one batch: the effective share of samples (sum w)^2 / (n sum w^2), the mean weight,
    and the variance of the weighted losses.
    """
    w = draw.weight
    return {
        "times/effective_share": w.sum() ** 2 / (len(w) * w.square().sum()),
        "times/weight_mean": w.mean(),
        "times/weighted_loss_variance": weighted.var(correction=0),
    }
