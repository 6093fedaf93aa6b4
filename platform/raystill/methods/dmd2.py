"""DMD2, distribution matching distillation (2405.14867): the student's samples are moved from a fake score's estimate
of x_0 to the teacher's, where the fake score is trained on these samples; an adversary tells the samples from data; for
several steps the student's inputs come from backward simulation.

Departures: the paper's adversary reads the fake score's features and trains its encoder, too; here heads read the
frozen teacher's, so that every role has one engine; they keep one logit per place, where the paper's pools a map into
one vector by convolutions of strides 2 and 4 (appendix F.1). The student's samples are the same for all roles of a
step, which is what the published alternation computes.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced
from raystill.flow.objectives import true_value
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import Latent, column, point
from raystill.flow.randomness import RandomStream
from raystill.flow.starts import StartLaw
from raystill.methods.adversary import (
    ADVERSARY,
    Logits,
    check_features,
    features,
    heads_of,
    input_gradient,
    non_saturating,
    told_apart,
    towards,
)
from raystill.methods.method import (
    EVERY_LANE,
    STUDENT,
    TEACHER,
    Batch,
    Distillation,
    Given,
    Head,
    Loss,
    Networks,
    check_times,
    generator,
)
from raystill.methods.teaching import Guidance, Teaching, any_times, fresh
from raystill.models.conditioning import Condition
from raystill.models.denoiser import Denoiser
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, ray_scheduler
from raystill.models.stock import StockSampler

FAKE = "fake_score"  # name of the role


@dataclass(frozen=True, slots=True, kw_only=True)
class DMD2(Distillation):
    """Settings of DMD2."""

    student_steps: int = introduced(4, former="steps")  # N, sampling steps of the student
    ratio: int = introduced(5)  # R: the student is updated every R steps, the other roles at each step
    guidance: float = introduced(3.0)  # guidance scale w of the teacher, the real score
    lowest: float = introduced(0.02)  # lowest time at which scores are compared; the highest is 1 less this
    adversarial: float = introduced(5e-3)  # weight of the adversary in the student's gradient; 0 trains none
    features: tuple[str, ...] = introduced(("mid_block",))  # blocks of the teacher's network that the adversary reads
    learning_rate: float = introduced(1e-4)  # learning rate of the adversary

    name: ClassVar[str] = "dmd2"
    paper: ClassVar[str] = "2405.14867"
    takes_eta: ClassVar[bool] = False
    copies: ClassVar[tuple[str, ...]] = (FAKE,)

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that the method trains: student, fake score and, where its weight is not 0, the adversary."""
        return (STUDENT, FAKE, ADVERSARY) if self.adversarial else (STUDENT, FAKE)

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step: the student every `ratio` steps, the others always, as two time scales
        (section 4.2).
        """
        return self.learners if step % self.ratio == 0 else self.learners[1:]

    def heads(self, given: Given) -> dict[str, Head]:
        """The adversary's heads, by role; none where its weight is 0."""
        return {ADVERSARY: Head(heads_of(given, self.features), self.learning_rate)} if self.adversarial else {}

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher of fewer times than `student_steps`, or without the UNet blocks that the
        adversary reads.
        """
        check_times(teacher.schedule, "method.student_steps", self.student_steps)
        if self.adversarial:
            check_features(self.features, teacher.features)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, steps or a ratio below 1, a negative weight, and a lowest time outside [0, 0.5)."""
        super(DMD2, self).check(sampling, lane_size, steps)
        if self.student_steps < 1 or self.ratio < 1 or self.adversarial < 0 or not 0 <= self.lowest < 0.5:
            raise UserError(
                f"method.student_steps is {self.student_steps}, ratio {self.ratio}, adversarial {self.adversarial} "
                f"and lowest {self.lowest}; write at least 1, 1, 0 and a time below 0.5"
            )

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the real score and the adversary's features where
        the student is updated, and twice the features for the adversary's own loss.
        """
        scores, read = Guidance(low=self.guidance, high=self.guidance).branches, float(self.adversarial > 0)
        return (scores + read) * -(-steps // self.ratio) / steps + 2 * read

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """Losses of a step: distribution matching and the adversary for the student (equations 2 and 4), the denoising
        loss of the fake score (section 3, in words) and the adversary's own loss, all on the same samples.
        """
        condition, turn = batch["condition"], self.turn(step)
        sample = self._sample(given, networks, batch, rng, step, learn=STUDENT in turn)
        teaching = Teaching.of(networks, given, batch, Guidance(low=self.guidance, high=self.guidance), rng)
        fake = given.denoiser(networks[FAKE])
        found: dict[str, Loss] = {}
        if STUDENT in turn:
            found[STUDENT] = self._student(given, networks, condition, sample, teaching, fake, rng)
        sample = sample.detach()
        t, eps = any_times(len(sample), rng), fresh(sample, rng)
        says = fake(point(sample, eps, given.schedule.angle(t)), t, condition)
        found[FAKE] = Loss((says.value - true_value(says, sample, eps)).square().mean(), times=t)
        if ADVERSARY in turn:
            real, faked = (self._logits(given, networks, x, condition, rng) for x in (batch["x_0"], sample))
            found[ADVERSARY] = told_apart(real, faked)
        return found

    def _sample(
        self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int, *, learn: bool
    ) -> Latent:
        """The student's x_0 at one of its N times, to which it has come by itself (section 4.5); the same time for the
        whole step on all ranks.
        """
        student, schedule = given.denoiser(networks[STUDENT]), given.schedule
        last = int(generator(given.seed, EVERY_LANE, step).integers(0, self.student_steps, 1))
        x_0: Latent = batch["x_0"]
        x = fresh(x_0, rng)
        times = schedule.sampling_times(self.student_steps)
        for i in range(last + 1):
            t, following = times[i].expand(len(x)), times[i + 1].expand(len(x))
            with torch.set_grad_enabled(learn and i == last):
                x_0 = student(x, t, batch["condition"]).data
            x = point(x_0.detach(), fresh(x_0, rng), schedule.angle(following))
        return x_0

    def _student(
        self, given: Given, networks: Networks, condition: Condition, sample: Latent, teaching: Teaching,
        fake: Denoiser, rng: RandomStream,
    ) -> Loss:  # fmt: skip
        """The student's loss, whose gradient is g = (f - r) / mean |x - r| plus the adversary's; f and r are the
        estimates of x_0 by fake score and teacher from the sample x, noised.
        """
        t = any_times(len(sample), rng, self.lowest)
        with torch.no_grad():
            noised = point(sample, fresh(sample, rng), given.schedule.angle(t))
            real, faked = teaching(noised, t).data, fake(noised, t, condition).data
            size = (sample - real).abs().mean(dim=(1, 2, 3))
            gradient = (faked - real) / column(size + 1e-6, sample) / sample.numel()
        metrics = {"distillation/gradient_norm": (gradient * sample.numel()).square().mean().sqrt()}
        if self.adversarial:
            value, own = input_gradient(
                lambda x: non_saturating(self._logits(given, networks, x, condition, rng)), sample
            )
            gradient = gradient + self.adversarial * own
            metrics["loss/student_adversarial"] = value
        return Loss(towards(sample, gradient), metrics, times=t)

    def _logits(self, given: Given, networks: Networks, x: Latent, condition: Condition, rng: RandomStream) -> Logits:
        """The adversary's logits for latents, each noised to a time of its own."""
        t = any_times(len(x), rng)
        noised = point(x, fresh(x, rng), given.schedule.angle(t))
        seen = features(given, networks[TEACHER], self.features, noised, t, condition)
        logits: Logits = networks[ADVERSARY](seen)
        return logits

    def noisy(self, sampling: Sampling) -> bool:
        """Always true: the sampler noises every estimate of x_0 anew."""
        return True

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The sampler that estimates x_0 and noises the estimate anew, at the stock sampler's times."""
        return ray_scheduler(stock, DiffusionPath(), Sampling(eta=1.0), start)
