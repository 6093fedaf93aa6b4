"""ADD, adversarial diffusion distillation (2311.17042), in the latent space of LADD (2403.12015): the student learns
from an adversary on the frozen teacher's features and from the teacher's estimate of the student's samples.

Departures: features are the teacher's own, at latents that are noised, where ADD reads DINOv2's of pictures; heads
are told nothing of caption and picture; the distance of the estimate is one of latents. Losses and R1 are means over
heads, where the paper sums, and over logits per place, of which it says nothing (StyleGAN-T, whose adversary it takes
over, has them). LADD's text was not available: of it come the features only.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import relu

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import Latent, column, point
from raystill.flow.randomness import RandomStream
from raystill.flow.starts import StartLaw
from raystill.methods.adversary import (
    ADVERSARY,
    FeatureMaps,
    check_features,
    features,
    heads_of,
    input_gradient,
    mean_over_places,
    r1,
    towards,
)
from raystill.methods.coupling import noise_for
from raystill.methods.method import STUDENT, TEACHER, Batch, Distillation, Given, Head, Loss, Networks, check_times
from raystill.methods.teaching import Guidance, Teaching, any_times, begun, fresh
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, ray_scheduler
from raystill.models.stock import StockSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class ADD(Distillation):
    """Settings of ADD, adversarial diffusion distillation."""

    # N: the student learns at the times of the stock sampler in N steps
    student_steps: int = introduced(4, former="steps")
    guidance: Guidance = introduced_group(Guidance)  # guidance of the teacher's estimate
    distillation: float = introduced(2.5)  # lambda, weight of the distance to the teacher's estimate
    adversarial: float = introduced(1.0)  # weight of the adversary in the student's gradient
    penalty: float = introduced(1e-5)  # weight gamma of R1, the squared gradient of a place's logit in real features
    features: tuple[str, ...] = introduced(("mid_block",))  # blocks of the teacher's network that the adversary reads
    learning_rate: float = introduced(1e-4)  # learning rate of the adversary
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)

    name: ClassVar[str] = "add"
    paper: ClassVar[str] = "2311.17042, 2403.12015"
    takes_eta: ClassVar[bool] = False

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that the method trains: student and adversary."""
        return (STUDENT, ADVERSARY)

    def heads(self, given: Given) -> dict[str, Head]:
        """The adversary's heads, by role."""
        return {ADVERSARY: Head(heads_of(given, self.features), self.learning_rate)}

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher of fewer times than `student_steps`, or without the UNet blocks that the
        adversary reads.
        """
        check_times(teacher.schedule, "method.student_steps", self.student_steps)
        check_features(self.features, teacher.features)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, a student without steps, and negative weights."""
        super(ADD, self).check(sampling, lane_size, steps)
        if self.student_steps < 1 or min(self.distillation, self.adversarial, self.penalty) < 0:
            raise UserError(
                f"method.student_steps is {self.student_steps}, distillation {self.distillation}, "
                f"adversarial {self.adversarial}, penalty {self.penalty}; write 1 step or more, weights of 0 or more"
            )

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the guided estimate, and the features that the
        adversary reads, twice for its own loss and once for the student's.
        """
        return self.guidance.branches + 3.0

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """Losses of student and adversary: the hinge losses (equations 2 and 3), and for the student c(t) |x - x_psi|^2
        (equation 4), where x_psi is the teacher's estimate from the sample noised to t, and c(t) = s_t.
        """
        x_0, condition, schedule = batch["x_0"], batch["condition"], given.schedule
        t = schedule.sampling_times(self.student_steps)[rng.integers(0, self.student_steps, len(x_0))]
        noise = noise_for(x_0, rng, immiscible=self.immiscible)
        start = begun(schedule, t, x_0, noise)
        sample = given.denoiser(networks[STUDENT])(start, t, condition).data
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        at, own = any_times(len(x_0), rng), fresh(x_0, rng)
        with torch.no_grad():
            said = teaching(point(sample, own, schedule.angle(at)), at).data
        distance = column(schedule.signal(at), sample) * (sample - said).square()
        seen, noised = any_times(len(x_0), rng), fresh(x_0, rng)

        def read(x: Latent) -> FeatureMaps:
            at = point(x, noised, schedule.angle(seen))
            return features(given, networks[TEACHER], self.features, at, seen, condition)

        value, gradient = input_gradient(lambda x: mean_over_places(torch.neg, networks[ADVERSARY](read(x))), sample)
        student = self.distillation * distance.mean() + towards(sample, self.adversarial * gradient)
        metrics = {"loss/student_adversarial": value, "loss/student_distillation": distance.detach().mean()}
        with torch.no_grad():
            real, faked = read(x_0), read(sample)
        return {
            STUDENT: Loss(student, metrics, times=t),
            ADVERSARY: Loss(self._adversary(networks, real, faked), times=seen),
        }

    def _adversary(self, networks: Networks, real: FeatureMaps, faked: FeatureMaps) -> Float[Tensor, ""]:
        """The adversary's loss, mean relu(1 - D(x_0)) + mean relu(1 + D(x)) + gamma R1, with means over samples, places
        and heads.
        """
        leaves = {name: feature.detach().requires_grad_() for name, feature in real.items()}
        said = networks[ADVERSARY](leaves)
        hinge = mean_over_places(lambda logits: relu(1 - logits), said)
        hinge = hinge + mean_over_places(lambda logits: relu(1 + logits), networks[ADVERSARY](faked))
        return hinge + self.penalty * r1(said, leaves) if self.penalty else hinge

    def noisy(self, sampling: Sampling) -> bool:
        """Always true: the sampler noises every estimate of x_0 anew."""
        return True

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """The sampler that estimates x_0 and noises the estimate anew, at the stock sampler's times."""
        return ray_scheduler(stock, DiffusionPath(), Sampling(eta=1.0), start)
