"""CTM, consistency trajectory models (2310.02279): the student is told the time at which its jump lands, so that one
network holds every jump along the teacher's trajectories; ends of jumps are compared after a further jump to data, and
a jump of length 0 is trained as a denoiser.

Departures: the grid is the stock sampler's, the solver guided DDIM (the paper's is Heun, unguided, of pixels);
distances are of latents; the denoising term is of what the network predicts, at uniform times, and where the teacher is
guided its target is the guided teacher's answer, since the mean of the data would contradict the jumps; the two terms
are balanced by their gradients in the network's output, where the paper takes its last layer's weights; the landing is
told by one layer that begins as zero, so that the student begins as the teacher. The adversarial term, which gives most
of the paper's quality at one step, is left out. Only gamma 0 is sampled, the paper's choice for several steps.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.objectives import true_value
from raystill.flow.predictions import Latent, Prediction, point
from raystill.flow.premetrics import Premetric, PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.flow.solvers import ddim_between
from raystill.flow.starts import StartLaw
from raystill.methods.adversary import input_gradient
from raystill.methods.consistency import TimePair, grid_of, jumped
from raystill.methods.coupling import noise_for
from raystill.methods.method import (
    EVERY_LANE,
    STUDENT,
    TARGET,
    Batch,
    Distillation,
    Given,
    Loss,
    Networks,
    check_times,
    generator,
)
from raystill.methods.teaching import Guidance, Teaching, fresh
from raystill.models.conditioning import Condition
from raystill.models.ctm import check_room, embedded
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, ctm_scheduler
from raystill.models.stock import StockSampler

MOST_WEIGHT = 1e4  # largest weight of the denoising term


@dataclass(frozen=True, slots=True, kw_only=True)
class CTM(Distillation):
    """Settings of CTM; the paper has N = 18 and M = 17 for CIFAR-10, a grid that few samplers' steps are on."""

    intervals: int = introduced(16)  # N: times are those of the stock sampler in N steps
    # M: the teacher leads m = 1 to M steps, equal in time, down the grid, with a probability as m
    most: int = introduced(15)
    # weight of the denoising term, whose gradient is as large as the consistency term's at 1; 0 leaves it out
    denoising: float = introduced(1.0)
    guidance: Guidance = introduced_group(Guidance)  # of the teacher
    premetric: Premetric = introduced_group(PseudoHuber)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)
    target_decay: float = introduced(0.999)  # decay of the target network's average

    name: ClassVar[str] = "ctm"
    paper: ClassVar[str] = "2310.02279"
    takes_eta: ClassVar[bool] = False
    tells_landing: ClassVar[bool] = True

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a grid that is finer than the teacher's times, and a teacher whose UNet has a
        condition of the time already.
        """
        check_times(teacher.schedule, "method.intervals", self.intervals)
        check_room(teacher.time_condition)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, a teacher that leads beyond the grid, and weights out of their range."""
        super(CTM, self).check(sampling, lane_size, steps)
        if not 1 <= self.most <= self.intervals or self.denoising < 0 or not 0 <= self.target_decay <= 1:
            raise UserError(
                f"method.most is {self.most} of method.intervals {self.intervals}, denoising {self.denoising} and "
                f"target_decay {self.target_decay}; write 1 to {self.intervals}, 0 or more, and a share in [0, 1]"
            )

    def trained_times(self, schedule: Schedule) -> Times:
        """The times of the method's grid, above 0."""
        return grid_of(schedule, self.intervals)[1:]

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps: `target_decay` at every step."""
        return self.target_decay

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the mean number m of DDIM steps, and the denoising
        term's target where the teacher is guided.
        """
        guides = 2 if self.denoising and self.guidance.branches == 2 else 0
        return (2 * self.most + 1) / 3 * self.guidance.branches + guides

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: distance of G*(G(x_t, t -> s), s -> 0) from G*(G(x_u, u -> s), s -> 0), where the teacher
        leads from t to u and G* is the target network's (equation 8), and the denoising loss of g(x, t -> t).
        """
        condition, schedule = batch["condition"], given.schedule
        led = self._led(given, step)
        draw = self._drawn(schedule, led, len(batch["x_0"]), rng)
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        x = point(batch["x_0"], noise_for(batch["x_0"], rng, immiscible=self.immiscible), schedule.angle(draw.t))
        data = torch.zeros_like(draw.t)
        with torch.no_grad():
            at = ddim_between(teaching, schedule, x, draw.t, draw.led, led)
            said = self._answer(given, networks[STUDENT], at, draw.led, draw.landing, condition)
            inner = jumped(said, schedule, draw.led, draw.landing)
            last = self._answer(given, networks[TARGET], inner, draw.landing, data, condition)
            wanted = jumped(last, schedule, draw.landing, data)

        def distance(landed: Latent) -> Tensor:
            outer = self._answer(given, networks[TARGET], landed, draw.landing, data, condition)
            return self.premetric.per_sample(jumped(outer, schedule, draw.landing, data) - wanted).mean()

        answer = self._answer(given, networks[STUDENT], x, draw.t, draw.landing, condition)
        found = jumped(answer, schedule, draw.t, draw.landing)
        value, gradient = input_gradient(distance, found)
        loss = value + ((found - found.detach()) * gradient).sum()  # its value, and its gradient in the student
        if not self.denoising:
            return {STUDENT: Loss(loss, times=draw.t)}
        error, slope = self._denoised(given, networks[STUDENT], batch, teaching, rng)
        own = _pulled(answer, gradient, schedule, draw)
        weight = (own.norm() / (slope.norm() + 1e-12)).clamp(max=MOST_WEIGHT)
        metrics = {"loss/student_consistency": value, "loss/student_denoising": error.detach()}
        metrics["loss/denoising_weight"] = weight.detach()
        return {STUDENT: Loss(loss + self.denoising * weight * error, metrics, times=draw.t)}

    def _led(self, given: Given, step: int) -> int:
        """The random number m of the teacher's steps, the same for the whole training step on all ranks."""
        weights = torch.arange(1.0, self.most + 1)
        return 1 + int(generator(given.seed, EVERY_LANE, step).weighted(weights, 1))

    def _drawn(self, schedule: Schedule, led: int, count: int, rng: RandomStream) -> TimePair:
        """Random times of a batch: t uniform over the grid's points m and more above data, u the point m below t, s
        uniform over the points from u down to data.
        """
        j = rng.integers(led, self.intervals + 1, count)
        share = rng.uniform(count)
        landing = (share * (j - led + 1)).long()
        grid = grid_of(schedule, self.intervals)
        t, u, s = (grid[index] for index in (j, j - led, landing))
        return TimePair(t, u, s)

    def _denoised(
        self, given: Given, student: nn.Module, batch: Batch, teaching: Teaching, rng: RandomStream
    ) -> tuple[Tensor, Latent]:
        """Mean squared error of g(x, t -> t), and its gradient in the network's output; the target is the data where
        the teacher is not guided, else the guided teacher's prediction, which is the limit of the jumps, too.
        """
        x_0 = batch["x_0"]
        t, noise = 1 - rng.uniform(len(x_0)), fresh(x_0, rng)
        x = point(x_0, noise, given.schedule.angle(t))
        said = self._answer(given, student, x, t, t, batch["condition"])
        error = said.value - (true_value(said, x_0, noise) if teaching.scale is None else teaching(x, t).value)
        return error.square().mean(), 2 * error.detach() / error.numel()

    def _answer(
        self, given: Given, network: nn.Module, x: Latent, t: Times, landing: Times, condition: Condition
    ) -> Prediction:
        """The prediction of a network that is told the time of its landing; at data itself the network is asked at the
        first step's time.
        """
        lands = embedded(given.schedule.timestep(landing)).to(x.device, non_blocking=True)
        knows = given.backbone.landing_at(network, lands)
        return given.denoiser(knows)(x, t.clamp(min=1 / given.schedule.steps), condition)

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The sampler of DDIM's steps, which tells the network the end of each step."""
        return ctm_scheduler(stock)


def _pulled(answer: Prediction, gradient: Latent, schedule: Schedule, draw: TimePair) -> Latent:
    """The gradient in the network's output of a loss whose gradient in the jump's end is given; nothing passes through
    the network, whose engine takes one backward a lane.
    """
    value = answer.value.detach().requires_grad_()
    with torch.enable_grad():
        end = jumped(replace(answer, value=value), schedule, draw.t, draw.landing)
    (pulled,) = torch.autograd.grad(end, value, gradient)
    return pulled
