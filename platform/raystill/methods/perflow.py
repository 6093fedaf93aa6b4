"""PeRFlow (2405.07510): in each of K windows of time the student follows the straight line between the ends of the
teacher's trajectory there.

Read from its published code; the paper's text was not available. Departures: times are continuous; both networks are
told the teacher's own time of a point, where the published code tells the student one step more; windows end at the
teacher's knots at t = i / K, the last at clean data.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced, introduced_group
from raystill.flow.paths import DiffusionPath
from raystill.flow.predictions import VANISHING, point
from raystill.flow.premetrics import Premetric, SquaredError
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import FlowSchedule
from raystill.flow.solvers import ddim_between
from raystill.flow.starts import StartLaw
from raystill.flow.times import AnyTimes, UniformTimes
from raystill.flow.windows import SOONEST, Piece, constant_of, on_line, window_of
from raystill.methods.coupling import noise_for
from raystill.methods.method import DEFAULT_STEPS, STUDENT, Batch, Distillation, Given, Loss, Networks
from raystill.methods.teaching import Guidance, Teaching, weighted
from raystill.models.conditioning import chosen, moved
from raystill.models.pipeline import TeacherFacts
from raystill.models.sampling import Sampling, Scheduler, perflow_scheduler
from raystill.models.stock import StockSampler


@dataclass(frozen=True, slots=True, kw_only=True)
class PeRFlow(Distillation):
    """Settings of PeRFlow, piecewise rectified flow."""

    windows: int = introduced(4)  # K, number of equal windows of time
    substeps: int = introduced(8)  # K', DDIM steps of the teacher in a window
    target: Piece = introduced("ddim_eps")  # quantity that is learned; "velocity" for flow-matching teachers
    guidance: float = introduced(3.0)  # scale w of the teacher's guidance, or of the student's where synchronised
    # whether the teacher is unguided and loses the same captions as the student, which is then guided in sampling
    synchronised: bool = introduced(False)
    times: AnyTimes = introduced_group(UniformTimes)
    premetric: Premetric = introduced_group(SquaredError)
    immiscible: bool = introduced(False)  # whether noise is assigned within a batch to latents near it (2406.12303)
    caption_dropout: float = introduced(0.1)  # share of samples whose student sees no caption

    name: ClassVar[str] = "perflow"
    paper: ClassVar[str] = "2405.07510"
    takes_eta: ClassVar[bool] = False

    def check(self, sampling: Sampling, lane_size: int, steps: tuple[int, ...]) -> None:
        """Refuse, with UserError, windows without a step of the sampler or the teacher, and a caption dropout of 1 or
        more.
        """
        super(PeRFlow, self).check(sampling, lane_size, steps)
        if self.windows < 1 or self.substeps < 1:
            raise UserError(f"method.windows is {self.windows} and method.substeps {self.substeps}; write 1 or more")
        if few := [n for n in steps if n < self.windows]:
            default = self.default_steps
            raise UserError(
                f"evaluation.student_steps has {few}, and PeRFlow takes a step in each of its {self.windows} windows: "
                f"--set 'evaluation.student_steps=[{default}, {2 * default}]', or --set method.windows={min(few)}"
            )
        if not 0 <= self.caption_dropout < 1:
            raise UserError(f"method.caption_dropout is {self.caption_dropout}; write a share below 1")

    def check_teacher(self, teacher: TeacherFacts) -> None:
        """Refuse, with UserError, a teacher for whose schedule or kind of prediction the `target` is not defined."""
        schedule, kind = teacher.schedule, teacher.kind
        straight = isinstance(schedule, FlowSchedule)
        if self.target == "velocity" and not straight:
            raise UserError(
                f"PeRFlow's velocity is the one of a flow-matching teacher, and this one predicts {kind}: "
                "--set method.target=ddim_eps"
            )
        blind = float(schedule.angle(torch.ones(1, dtype=torch.float64)).cos()) < VANISHING
        if self.target == "ddim_eps" and blind:
            raise UserError(
                "ddim_eps says nothing of the data where a schedule starts at pure noise, as the teacher's does: "
                f"--set method.target={'velocity' if straight else 'diff_eps'}"
            )
        if kind == "sample":
            raise UserError("PeRFlow learns a noise, which a teacher of data cannot say at data: --set method=RayFlow")
        if self.target == "diff_eps" and straight:
            raise UserError(
                "diff_eps is a step of a diffusion chain, and the teacher matches flows: --set method.target=velocity"
            )

    def calls(self, steps: int) -> float:
        """Evaluations of the teacher's network per sample and step: the teacher's sub-steps, doubled under guidance."""
        return float(self.substeps * (1 if self.synchronised or self.guidance == 1 else 2))

    @property
    def guides(self) -> float:
        """Guidance scale w at which the student is sampled: `guidance` where it is synchronised, and so has not learned
        the teacher's guidance, else 1.
        """
        return self.guidance if self.synchronised else 1.0

    @property
    def default_steps(self) -> int:
        """Default sampling steps of the student: four, or one in each window where there are more than four."""
        return max(DEFAULT_STEPS, self.windows)

    @property
    def shown(self) -> tuple[int, ...]:
        """Step counts of the pictures drawn during training: one step and two in each window."""
        return (self.windows, 2 * self.windows)

    def losses(self, given: Given, networks: Networks, batch: Batch, rng: RandomStream, step: int) -> dict[str, Loss]:
        """The student's loss: mean distance of the predicted constant of the piece from the true one, at points of the
        line between x_s and the teacher's x_e.
        """
        x_0, schedule = batch["x_0"], given.schedule
        draw = self.times.draw(len(x_0), DiffusionPath(), schedule, rng)
        t = draw.t.clamp(min=SOONEST)
        window = window_of(self.windows, t)
        dropped = rng.uniform(len(x_0)) < self.caption_dropout
        empty = moved(given.unconditional, x_0.device)
        seen = chosen(dropped.to(x_0.device, non_blocking=True), empty, batch["condition"])
        scale = 1.0 if self.synchronised else self.guidance
        taught = {**batch, "condition": seen} if self.synchronised else batch
        teaching = Teaching.of(networks, given, taught, Guidance(low=scale, high=scale), rng)
        eps = noise_for(x_0, rng, immiscible=self.immiscible)
        with torch.no_grad():
            x_s = point(x_0, eps, schedule.angle(window.start))
            x_e = ddim_between(teaching, schedule, x_s, window.start, window.end, self.substeps)
            wanted = constant_of(self.target, schedule, window, x_s, x_e)
            x = on_line(schedule, window, t, x_s, x_e)
        found = given.denoiser(networks[STUDENT])(x, t, seen)
        error = (found.flow if self.target == "velocity" else found.epsilon) - wanted
        return {STUDENT: Loss(weighted(self.premetric.per_sample(error), draw.weight), times=t)}

    def scheduler(self, stock: StockSampler, sampling: Sampling, start: StartLaw) -> Scheduler:
        """PeRFlow's own scheduler, which samples window by window."""
        return perflow_scheduler(stock, self.windows, self.target)
