"""A teacher's ODE trajectory between data and noise, solved in either direction, and the means of the teacher's noise
predictions along it that RayFlow takes for a sample's target mean (2503.07699).
"""

from dataclasses import dataclass, field

import torch

from raystill.flow.predictions import VANISHING, Latent, Prediction
from raystill.flow.schedules import Grid, Schedule, Times
from raystill.flow.solvers import Solver, VPDenoise, ddim, dpm_solver_2m


def angle_times(schedule: Schedule, steps: int, rho: float) -> Grid:
    """Times of `steps` steps from 1 to 0 at angles proportional to u^rho, u evenly spaced; rho > 1 spaces times closer
    near data.

    The angle is the length of a path between data and noise of unit length. A diffusion schedule's trailing times leave
    the part of it at data, where predictions change most, to one step (Karras et al. 2206.00364, equation 5, spaces n /
    s likewise).
    """
    end = float(schedule.angle(torch.ones(1, dtype=torch.float64)))
    times = schedule.time_of(end * torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** rho)
    times[0], times[-1] = 1, 0
    return times


def invert(solver: Solver, denoise: VPDenoise, schedule: Schedule, x_0: Latent, times: Grid) -> Latent:
    """The start z from which the teacher's ODE leads to x_0: the ODE solved from x_0 upwards, over the sampler's
    `times` in reverse.

    A step to zero signal has no end in half log-SNR, and DPM-Solver++(2M) would extrapolate without bound: there, the
    last step is DDIM's.
    """
    rising = times.flip(0)
    if solver is dpm_solver_2m and float(schedule.angle(rising[-1:]).cos()) < VANISHING:
        x = solver(denoise, schedule, x_0, rising[:-1])
        return ddim(denoise, schedule, x, rising[-2:])
    return solver(denoise, schedule, x_0, rising)


def constant_noise(start: Latent, x_0: Latent, schedule: Schedule) -> Latent:
    """The noise eps_bar = (z - s_1 x_0) / n_1 whose single DDIM step from the start z lands on x_0.

    It is the mean over kappa = n / s of the noise predictions along the trajectory from z to x_0, since
    d(x / s) / d kappa = eps.
    """
    angle = schedule.angle(torch.ones(1, dtype=torch.float64))
    return (start - float(angle.cos()) * x_0) / float(angle.sin())


@dataclass(slots=True)
class TimeMean:
    """A denoiser that keeps the mean over uniform t of its noise predictions while a solver runs up to t = 1.

    The mean is integrated by trapezoids between calls, and with the last prediction up to t = 1; a second call at one
    time (Heun's) starts the next trapezoid. Two latents are kept, however many calls there are.
    """

    denoise: VPDenoise
    total: Latent | None = field(default=None, init=False)  # integral of the noise predictions so far
    last: Latent | None = field(default=None, init=False)  # noise prediction of the last call
    since: float = field(default=0.0, init=False)  # time of the last call
    first: float = field(default=0.0, init=False)  # time of the first call

    def __call__(self, x: Latent, t: Times) -> Prediction:
        """Predict, and add the prediction to the mean; `t` is one time for the whole batch, not before that of the last
        call.
        """
        prediction = self.denoise(x, t)
        now, noise = float(t[0]), prediction.epsilon  # t is on the CPU: no device sync
        if self.last is None or self.total is None:
            self.total, self.first = torch.zeros_like(noise), now
        else:
            self.total = self.total + (now - self.since) / 2 * (self.last + noise)
        self.last, self.since = noise, now
        return prediction

    def mean(self) -> Latent:
        """The mean noise prediction from the first call's time to t = 1."""
        assert self.last is not None
        assert self.total is not None
        return (self.total + (1 - self.since) * self.last) / (1 - self.first)
