"""SDXL-Lightning (2402.13929): progressive distillation, the first stage by a squared error from the guided teacher,
the later ones by an adversary that knows where a jump began.

Departures: the adversary's backbone is the frozen teacher, where the paper trains a copy of its encoder; its heads keep
one logit per place, where the paper's reduces a map to one value by convolutions of stride 2; phases that train all
weights, the adversary without the jump's beginning and the switch to a data prediction for one step are left out; one
adversary and one decay of the learning rate span all stages; where a jump ends at data, the adversary sees it noised to
one of four times, as the paper's last stage does.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.predictions import Latent, point
from raystill.flow.premetrics import Premetric, SquaredError
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Times
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
from raystill.methods.coupling import noise_for
from raystill.methods.method import (
    STUDENT,
    TARGET,
    TEACHER,
    Batch,
    Distillation,
    Given,
    Head,
    Loss,
    Networks,
    check_jumps,
    check_times,
)
from raystill.methods.teaching import Guidance, Teaching, begun, fresh
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling

NOISED = (0.01, 0.25, 0.5, 0.75)  # times at which clean ends of jumps are judged (section 3.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lightning(Distillation):
    """Settings of SDXL-Lightning."""

    # sampling steps of the student in each stage; each number divides the one before
    stages: tuple[int, ...] = introduced((32, 8, 4, 2, 1))
    first: int = introduced(128)  # steps of the guided teacher, from which the first stage learns
    stage_steps: int = introduced(100)  # training steps of each stage; the last stage goes on to the end
    guidance: Guidance = introduced_group(Guidance)  # of the teacher in the first stage; later students have learned it
    features: tuple[str, ...] = introduced(("mid_block",))  # blocks of the teacher's network that the adversary reads
    learning_rate: float = introduced(1e-4)  # learning rate of the adversary
    premetric: Premetric = introduced_group(SquaredError)  # distance in the first stage's loss
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)

    name: ClassVar[str] = "lightning"
    paper: ClassVar[str] = "2402.13929"

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that the method trains: student and, where there is more than one stage, adversary."""
        return (STUDENT, ADVERSARY) if len(self.stages) > 1 else (STUDENT,)

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step: the student alone in the first stage, then student and adversary."""
        return self.learners if self.stage(step) else (STUDENT,)

    def stage(self, step: int) -> int:
        """Index of the stage that a training step belongs to."""
        return min(step // self.stage_steps, len(self.stages) - 1)

    @property
    def default_steps(self) -> int:
        """Default sampling steps of the student: those of the last stage."""
        return self.stages[-1]

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps: 0 at the end of a stage, else 1, so that a stage's
        teacher is the student as it was at the end of the stage before.
        """
        return 0.0 if self.stage(step) != self.stage(step + 1) else 1.0

    def heads(self, given: Given) -> dict[str, Head]:
        """The adversary's heads, by role, which read a jump's end and its beginning; none for a single stage."""
        heads = heads_of(given, self.features, points=2)
        return {ADVERSARY: Head(heads, self.learning_rate)} if len(self.stages) > 1 else {}

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher of fewer times than `first`, or without the UNet blocks that the adversary
        reads.
        """
        check_times(teacher.schedule, "method.first", self.first)
        if len(self.stages) > 1:
            check_features(self.features, teacher.features)

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, stages that do not divide each other."""
        super(Lightning, self).check(sampling, lane_size, steps)
        chain = (self.first, *self.stages)
        if min(chain) < 1 or not self.stages or self.stage_steps < 1 or any(a % b for a, b in pairwise(chain)):
            raise UserError(
                f"method.stages is {self.stages} after {self.first} steps of the teacher, {self.stage_steps} training "
                "steps each; every number of steps divides the one before: --set 'method.stages=[32, 8, 4, 2, 1]'"
            )
        check_jumps(steps, self.stages[-1], "method.stages")

    @property
    def last_stage(self) -> tuple[str, int]:
        """Dotted path of the setting of the stages' length, and the training step at which the stage of the fewest
        sampling steps begins.
        """
        return "method.stage_steps", self.stage_steps * (len(self.stages) - 1)

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures drawn during training: the last stage's steps and four times as many."""
        return (self.stages[-1], 4 * self.stages[-1])

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the teacher's own steps in the first stage, and in
        later stages the features that the adversary reads, of a jump's beginning once, and of its end twice for the
        adversary and once for the student.
        """
        early = min(steps, self.stage_steps if len(self.stages) > 1 else steps)
        return (early * self.first // self.stages[0] * self.guidance.branches + 4 * (steps - early)) / steps

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """Losses of a step: squared distance of the student's jump from the teacher's end in the first stage (equation
        16), then the non-saturating losses of student and adversary (equations 20 and 21).
        """
        x_0, condition, schedule, stage = batch["x_0"], batch["condition"], given.schedule, self.stage(step)
        count, before = self.stages[stage], (self.first, *self.stages)[stage]
        ratio, knots = before // count, schedule.sampling_times(before)  # the very times of the stage before
        index = ratio * rng.integers(0, count, len(x_0))
        t, r = knots[index], knots[index + ratio]
        noise = noise_for(x_0, rng, immiscible=self.immiscible)
        start = begun(schedule, t, x_0, noise)
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        if stage:
            teaching = Teaching(given.denoiser(networks[TARGET]), teaching.unconditional, condition, None)
        with torch.no_grad():
            end = start
            for i in range(ratio):
                end = teaching(end, knots[index + i]).moved(schedule.angle(knots[index + i + 1]))
        jumped = given.denoiser(networks[STUDENT])(start, t, condition).moved(schedule.angle(r))
        if not stage:
            return {STUDENT: Loss(self.premetric.per_sample(jumped - end).mean(), times=t)}
        seen = _Seen(self, given, networks, batch, start, t, r, rng)
        value, gradient = input_gradient(lambda x: non_saturating(seen(x)), jumped)
        error = {"loss/student_data_mse": (jumped.detach() - end).square().mean()}
        student = Loss(towards(jumped, gradient), {"loss/student_adversarial": value, **error}, times=t)
        real, faked = seen(end), seen(jumped.detach())
        return {STUDENT: student, ADVERSARY: told_apart(real, faked, t)}


class _Seen:
    """The adversary's logits for ends of the step's jumps; ends that are clean data are noised first, with the same
    noise for student and teacher.
    """

    def __init__(
        self, settings: Lightning, given: Given, networks: Networks, batch: Batch, start: Latent, t: Times, r: Times,
        rng: RandomStream,
    ) -> None:  # fmt: skip
        self.names, self.adversary, self.schedule = settings.features, networks[ADVERSARY], given.schedule
        self.read = partial(features, given, networks[TEACHER], self.names, condition=batch["condition"])
        with torch.no_grad():
            self.begun = self.read(start, t)
        times = torch.tensor(NOISED, dtype=torch.float64)[rng.integers(0, len(NOISED), len(t))]
        self.clean = r == 0
        self.r, self.noise = torch.where(self.clean, times, r), fresh(start, rng)

    def __call__(self, end: Latent) -> Logits:
        noised = point(end, self.noise, self.schedule.angle(self.r))
        shown = torch.where(self.clean.to(end.device, non_blocking=True)[:, None, None, None], noised, end)
        ended = self.read(shown, self.r)
        logits: Logits = self.adversary({name: torch.cat([ended[name], self.begun[name]], 1) for name in self.names})
        return logits
