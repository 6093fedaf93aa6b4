"""Target-mean estimators that solve the teacher's ODE: from its own start to a sample, or from a real latent up to
noise.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from raystill.config.errors import UserError
from raystill.config.fingerprint import by_former_name, introduced
from raystill.flow.predictions import Kind, Latent
from raystill.flow.schedules import Grid, Schedule
from raystill.flow.solvers import Solver, calls, ddim, dpm_solver_2m, euler, heun
from raystill.flow.starts import StartLaw
from raystill.flow.trajectories import TimeMean, angle_times, constant_noise, invert
from raystill.models.backbones.backbone import Pictures
from raystill.models.conditioning import Condition
from raystill.targets.estimators import Estimator, Teacher, check_revision

SolverName = Literal["ddim", "euler", "heun", "dpm_solver_2m"]
SOLVERS: dict[SolverName, Solver] = {"ddim": ddim, "euler": euler, "heun": heun, "dpm_solver_2m": dpm_solver_2m}


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverEstimator(Estimator):
    """Base of the estimators that solve the teacher's ODE."""

    solver_steps: int = introduced(12, former="steps")
    guidance: float = introduced(1.0)  # scale w of the teacher's guidance; 1 is none
    solver: SolverName = introduced("dpm_solver_2m")
    # rho: the solver's angles are u^rho, u evenly spaced; None: the stock sampler's times
    rho: float | None = introduced(3.0)

    rising: ClassVar[bool]  # whether the ODE is solved from data to noise

    def __post_init__(self) -> None:
        name, at = type(self).__name__, "--set targets.estimator"
        if self.solver not in SOLVERS:
            raise UserError(
                f"{name}'s solver is {self.solver!r}; write one of {', '.join(SOLVERS)}: {at}.solver=dpm_solver_2m"
            )
        if self.rho is not None and not 0 < self.rho <= 10:
            raise UserError(
                f"{name}'s rho is {self.rho}; write a number above 0 and up to 10, or null for the stock sampler's "
                f"times: {at}.rho=2"
            )
        if self.solver_steps < 1:
            raise UserError(f"{name} has {self.solver_steps} steps; write 1 or more: {at}.solver_steps=12")
        if not 0 <= self.guidance < float("inf"):
            raise UserError(
                f"{name}'s guidance is {self.guidance}; write a number from 0 on, where 1 is none: {at}.guidance=1"
            )

    @property
    def calls(self) -> int:
        """Evaluations of the teacher's network per sample: the solver's calls, doubled under guidance."""
        times = torch.linspace(0, 1, self.solver_steps + 1, dtype=torch.float64)
        per_branch = calls(SOLVERS[self.solver], times if self.rising else times.flip(0))
        return per_branch * (1 if self.guidance == 1 else 2)

    def check(self, schedule: Schedule, kind: Kind) -> None:
        """Refuse, with UserError, more steps than the teacher's schedule has, and for an inversion a teacher that
        predicts data and so says nothing about the noise at t = 0.
        """
        name, most = type(self).__name__, schedule.steps
        if self.solver_steps > most:
            raise UserError(
                f"{name} has {self.solver_steps} steps and the teacher's schedule {most}; write no more than those: "
                "--set targets.estimator.solver_steps=12"
            )
        if self.rising and kind == "sample":
            raise UserError(
                f"{name} inverts real latents, and a teacher that predicts data (prediction_type 'sample') says "
                "nothing about their noise at t = 0; write --set targets.estimator=Generation"
            )

    def times(self, schedule: Schedule) -> Grid:
        """Times of the solver from 1 to 0; an inversion takes them in reverse."""
        return (
            schedule.sampling_times(self.solver_steps)
            if self.rho is None
            else angle_times(schedule, self.solver_steps, self.rho)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation(SolverEstimator):
    """x_0 is the teacher's guided sample from z, and mu = (z - s_1 x_0) / n_1.

    mu is the one constant noise whose single DDIM step from z lands on x_0: the mean of the teacher's noise predictions
    over kappa along its own trajectory. At inference mu's law is that of z up to the small s_1 x_0, so sampling starts
    from N(0, I).
    """

    former: ClassVar[str] = "Generated"

    guidance: float = introduced(3.0)  # scale w of the teacher's guidance; 1 is none
    rho: float | None = introduced(None)
    revision: int = introduced(1, now=2)  # of the random starts; 1 is torch's generator, of 32-bit seeds

    reads_picture: ClassVar[bool] = False
    rising: ClassVar[bool] = False

    def __post_init__(self) -> None:
        SolverEstimator.__post_init__(self)
        check_revision(self)

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent]:
        """Sample the teacher from `start` and solve for the target mean."""
        schedule, denoise = teacher.denoiser.schedule, teacher.guided(condition, self.guidance)
        x_0 = SOLVERS[self.solver](denoise, schedule, start, self.times(schedule))
        return x_0, constant_noise(start, x_0, schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inversion(SolverEstimator):
    """x_0 is the real latent, and mu = (z - s_1 x_0) / n_1 with z the inversion of x_0 by the teacher's ODE upwards
    from t = 0.

    A real latent need not be a likely sample of the teacher, so that z is N(0, I) only approximately (its standard
    deviation is 0.9 for the shipped teacher). Guidance bends the trajectory away from the one that led to the latent,
    so its scale is 1 unless asked for.
    """

    former: ClassVar[str] = "Inverted"

    reads_picture: ClassVar[bool] = True
    rising: ClassVar[bool] = True

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent]:
        """Encode the picture, invert and solve for the target mean; `start` is not used."""
        x_0, schedule = teacher.encode(picture), teacher.denoiser.schedule
        denoise = teacher.guided(condition, self.guidance)
        z = invert(SOLVERS[self.solver], denoise, schedule, x_0, self.times(schedule))
        return x_0, constant_noise(z, x_0, schedule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation(SolverEstimator):
    """x_0 is the real latent, and mu the mean over uniform t of the teacher's noise predictions along its inversion.

    This is RayFlow's own wording, mu* = E_t[eps_t] (2503.07699, by a published summary). Nothing makes such a mean
    N(0, I) (its standard deviation was 0.5 for a teacher of digits and 0.9 for the shipped one), hence its start law is
    fitted to the targets.
    """

    reads_picture: ClassVar[bool] = True
    start: ClassVar[StartLaw | None] = None
    rising: ClassVar[bool] = True

    def targets(
        self, teacher: Teacher, start: Latent, condition: Condition, picture: Pictures | None
    ) -> tuple[Latent, Latent]:
        """Encode the picture, invert it and average the teacher's noise predictions on the way; `start` is not used."""
        x_0, schedule = teacher.encode(picture), teacher.denoiser.schedule
        denoise = TimeMean(teacher.guided(condition, self.guidance))
        invert(SOLVERS[self.solver], denoise, schedule, x_0, self.times(schedule))
        return x_0, denoise.mean()


__getattr__ = by_former_name(globals())
