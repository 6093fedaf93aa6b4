"""The loss of the consistency methods: the student's jump from t to r is to equal the student's jump from t' to r,
where the teacher has led from t to t' (2303.01469 in the form of 2402.19159: G(x, t -> r) = D(x, t -> r; e_student)).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent, Prediction, column, point
from raystill.flow.premetrics import Premetric
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, Grid, Schedule, Times
from raystill.methods.method import STUDENT, TARGET, Batch, Given, Loss, Networks, check_times

Indices = Int[Tensor, " batch"]
Lead = Callable[[Latent, Times, Times], Latent]  # (x, t, t') -> the point at t' to which the teacher leads


@dataclass(frozen=True, slots=True)
class TimePair:
    """Random times of a batch on a grid of N intervals of [0, 1]: the student's, the end of the teacher's step, and the
    landing.
    """

    t: Times  # of the noised latent, where the student is asked
    led: Times  # t' < t, to which the teacher leads
    landing: Times  # r <= t', where both jumps end


def grid_of(schedule: Schedule, intervals: int) -> Grid:
    """Times of the stock sampler in `intervals` steps, in increasing order from data on; the times of any number of
    steps that divides `intervals` are among them.
    """
    return schedule.sampling_times(intervals).flip(0)


def check_grid(intervals: int, target_decay: float | None) -> None:
    """Refuse, with UserError, a grid without intervals, and a target network that would not be an average."""
    if intervals < 1 or not 0 <= (target_decay or 0.0) < 1:
        raise UserError(
            f"method.intervals is {intervals} and method.target_decay {target_decay}; write 1 or more, and a share "
            "below 1: --set method.intervals=40 --set method.target_decay=0.95"
        )


def check_lcm_grid(intervals: int, steps: tuple[int, ...]) -> None:
    """Refuse, with UserError, more steps of LCM's scheduler than its grid has intervals."""
    if many := [n for n in steps if n > intervals]:
        raise UserError(
            f"evaluation.student_steps has {many}, and the student is asked at {intervals} times (method.intervals): "
            f"--set method.intervals={max(many)}"
        )


def check_lcm_teacher(schedule: Schedule, intervals: int) -> None:
    """Refuse, with UserError, a grid on whose times LCM's scheduler would not ask the student: the scheduler rounds
    intervals down to whole timesteps, and so begins below the noisy end.
    """
    check_times(schedule, "method.intervals", intervals)
    if isinstance(schedule, DiffusionSchedule) and schedule.steps % intervals:
        dividing = [n for n in range(1, schedule.steps + 1) if schedule.steps % n == 0]
        raise UserError(
            f"method.intervals is {intervals}, which does not divide the teacher's {schedule.steps} times, so that "
            "LCM's scheduler would ask at others than were trained: --set method.intervals="
            f"{min(dividing, key=lambda n: abs(n - intervals))}"
        )


def drawn(
    grid: Grid,
    bottom: Callable[[Indices], Indices],
    rng: RandomStream,
    count: int,
    *,
    any_landing: bool,
) -> TimePair:
    """Random times of a batch: t uniform over the grid's N points above 0 and t' the next point below; r is `bottom` of
    t's index, or uniform over the points from there to t'.
    """
    j = rng.integers(1, len(grid), count)
    lowest = bottom(j)
    share = rng.uniform(count)
    r = lowest + (share * (j - lowest)).long().clamp(max=j - 1 - lowest) if any_landing else lowest
    t, led, landing = (grid[index] for index in (j, j - 1, r))
    return TimePair(t, led, landing)


def jumped(prediction: Prediction, schedule: Schedule, t: Times, r: Times) -> Latent:
    """The end G(x, t -> r) of the jump from t to r; the point itself where r = t, whatever the network predicts."""
    here = column((t == r).to(t), prediction.x) > 0
    return torch.where(here, prediction.x, prediction.moved(schedule.angle(r)))


def consistency_loss(
    networks: Networks, given: Given, batch: Batch, draw: TimePair, lead: Lead, eps: Latent, premetric: Premetric
) -> Loss:
    """Mean distance of G(x_t, t -> r) from the target network's G(x', t' -> r), which gets no gradient."""
    x_0, condition, schedule = batch["x_0"], batch["condition"], given.schedule
    x = point(x_0, eps, schedule.angle(draw.t))
    student = given.denoiser(networks[STUDENT])
    target = given.denoiser(networks.get(TARGET, networks[STUDENT]))
    with torch.no_grad():
        led = lead(x, draw.t, draw.led)
        asked = draw.led.clamp(min=1 / schedule.steps)  # at data itself the answer is not used: it is the landing
        wanted = jumped(target(led, asked, condition), schedule, draw.led, draw.landing)
    found = jumped(student(x, draw.t, condition), schedule, draw.t, draw.landing)
    return Loss(premetric.per_sample(found - wanted).mean(), times=draw.t)
