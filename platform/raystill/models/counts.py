"""Step counts of samplers: the timesteps at which a scheduler calls the network for each, and whether a student was
trained at them.
"""

import inspect

from diffusers import SchedulerMixin

from raystill.config.errors import UserError
from raystill.flow.schedules import FlowSchedule, Times
from raystill.models.stock import schedule_of

NEAR = 1e-2  # timesteps closer than this count as equal: flow-matching ones are float32


def timesteps_of(scheduler: SchedulerMixin, steps: int) -> tuple[int | float, ...]:
    """The timesteps at which a scheduler calls the network in `steps` steps, noisy end first."""
    sigmas = sigmas_of(scheduler, steps)
    if sigmas:
        scheduler.set_timesteps(sigmas=list(sigmas))
    else:
        scheduler.set_timesteps(steps)
    return tuple(scheduler.timesteps.tolist())


def sigmas_of(scheduler: SchedulerMixin, steps: int) -> tuple[float, ...]:
    """The `sigmas` with which a pipeline of a flow-matching model takes `steps` steps at raystill's own times: evenly
    spaced, since the scheduler shifts them; empty where the scheduler takes none.

    Without `sigmas`, `FlowMatchEulerDiscreteScheduler` spaces its times from the shifted first to the shifted last one
    of training and shifts them again: with shift 3 the last of 4 steps begins at sigma 0.009 in place of 0.5.
    """
    takes = "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    if not takes or not isinstance(schedule_of(scheduler), FlowSchedule):
        return ()
    return tuple(1 - i / steps for i in range(steps))


def wrong_counts(scheduler: SchedulerMixin, steps: tuple[int, ...], trained: Times | None) -> dict[int, list[int]]:
    """Unusable step counts, each with the nearest usable counts below and above, the nearer one first.

    A count is unusable where the scheduler does not call the network exactly once a step, or calls it at a time that is
    not among those that a student was `trained` at; None allows all times. At trailing spacing diffusers' schedulers
    call once more, at timestep -1, where n times 1000 / n comes out below 1000 (n of 61, 103, 121 ...).
    """
    return {n: _nearest(scheduler, n, trained) for n in steps if not _fits(scheduler, n, trained)}


def _fits(scheduler: SchedulerMixin, steps: int, trained: Times | None) -> bool:
    try:
        asked = timesteps_of(scheduler, steps)
    except (UserError, ValueError):  # more steps than LCM's grid has, fewer than PeRFlow's windows
        return False
    if trained is None:
        return len(asked) == steps
    known = schedule_of(scheduler).timestep(trained)
    return len(asked) == steps and all(float((known - t).abs().min()) < NEAR for t in asked)


def _nearest(scheduler: SchedulerMixin, steps: int, trained: Times | None) -> list[int]:
    most = len(scheduler) if trained is None else len(trained)
    below = next((n for n in range(steps - 1, 0, -1) if _fits(scheduler, n, trained)), None)
    above = next((n for n in range(steps + 1, most + 1) if _fits(scheduler, n, trained)), None)
    return sorted((n for n in (below, above) if n is not None), key=lambda n: abs(n - steps))
