"""TCD, trajectory consistency distillation (2402.19159): the student's jump from any t to any earlier r is to equal its
jump to r from the point to which the guided teacher leads; and TSCD of Hyper-SD (2404.13686), where r does not cross
the lower edge of its segment of time, for fewer and fewer segments.

No training code of either was published. As both papers, the student is not told r: its one answer at (x, t) serves
every landing, which is exact only where the noise is constant along the trajectory. TSCD's adversarial term and its
weights were not published in numbers; it is left out. Its formula for the lower edge (equation 11) gives t itself
where t is an edge; segments are open below here. The teacher of every stage is the original one.

Its student is sampled by stock DDIM, whose jumps are those of TCD's own scheduler with gamma 0, at the trailing
timesteps. `sampling.eta` is the share of fresh noise after each jump; TCD's scheduler jumps beyond r to u = (1 - gamma)
r, whose share sqrt((1 - A_r / A_u) / (1 - A_r)) is another one at each step.
"""

from dataclasses import dataclass
from math import lcm
from typing import ClassVar

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.premetrics import Premetric, PseudoHuber
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import Schedule, Times
from raystill.methods.consistency import Indices, check_grid, consistency_loss, drawn, grid_of
from raystill.methods.coupling import noise_for
from raystill.methods.method import (
    STUDENT,
    Batch,
    Distillation,
    Given,
    Loss,
    Networks,
    check_jumps,
    check_times,
    whole_steps,
)
from raystill.methods.teaching import Guidance, Teaching
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class TCD(Distillation):
    """Settings of TCD, which is one segment, and of TSCD: `segments=(8, 4, 2, 1)`."""

    intervals: int = introduced(40)  # N: t' is one of N equal steps of the teacher's DDIM below t
    segments: tuple[int, ...] = introduced((1,))  # number of segments of [0, 1] in each stage
    stage_steps: int = introduced(250)  # training steps of each stage; the last stage goes on to the end
    guidance: Guidance = introduced_group(Guidance)  # of the teacher
    premetric: Premetric = introduced_group(PseudoHuber)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)
    # decay of the target network's average; None: the student itself is the target, as for adapters
    target_decay: float | None = introduced(None)

    name: ClassVar[str] = "tcd"
    paper: ClassVar[str] = "2402.19159, 2404.13686"

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, segments that do not divide the grid, and stages without a step."""
        super(TCD, self).check(sampling, lane_size, steps)
        check_grid(self.intervals, self.target_decay)
        if not self.segments or min(self.segments) < 1:
            raise UserError(f"method.segments is {self.segments}: --set 'method.segments=[8, 4, 2, 1]'")
        if self.intervals % (whole := lcm(*self.segments)):
            raise UserError(
                f"method.segments is {self.segments} and method.intervals {self.intervals}, which every number of "
                f"segments divides: --set method.intervals={-(-self.intervals // whole) * whole}"
            )
        if self.stage_steps < 1:
            raise UserError(f"method.stage_steps is {self.stage_steps}; write 1 or more: --set method.stage_steps=250")
        check_jumps(steps, self.segments[-1], "method.segments")

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a grid that is finer than the teacher's times."""
        check_times(teacher.schedule, "method.intervals", self.intervals)

    @property
    def last_stage(self) -> tuple[str, int]:
        """Dotted path of the setting of the stages' length, and the training step at which the stage of the fewest
        segments begins.
        """
        return "method.stage_steps", self.stage_steps * (len(self.segments) - 1)

    @property
    def default_steps(self) -> int:
        """Default sampling steps of the student: the least multiple of the last stage's segments that is four or
        more.
        """
        return whole_steps(self.segments[-1])

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures drawn during training: one step and four in each segment of the last stage."""
        return (self.segments[-1], 4 * self.segments[-1])

    def trained_times(self, schedule: Schedule) -> Times:
        """The times of the method's grid, above 0."""
        return grid_of(schedule, self.intervals)[1:]

    def keeps(self, step: int) -> float | None:
        """Share of its own value that the target network keeps: `target_decay` at every step."""
        return self.target_decay

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: one guided DDIM step."""
        return float(self.guidance.branches)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: distance of G(x_t, t -> r) from the target network's G(x', t' -> r), with x' one guided
        DDIM step of the teacher below x_t and r uniform between the segment's lower edge and t' (2404.13686, equation
        12).
        """
        length = self.intervals // self.segments[min(step // self.stage_steps, len(self.segments) - 1)]

        def edge(j: Indices) -> Indices:
            return (j - 1) // length * length

        draw = drawn(grid_of(given.schedule, self.intervals), edge, rng, len(batch["x_0"]), any_landing=True)
        teaching = Teaching.of(networks, given, batch, self.guidance, rng)
        noise = noise_for(batch["x_0"], rng, immiscible=self.immiscible)
        return {STUDENT: consistency_loss(networks, given, batch, draw, teaching.step, noise, self.premetric)}
