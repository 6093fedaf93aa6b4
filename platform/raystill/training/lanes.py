"""How the lanes of a step are shared out among ranks: a run's numbers depend on its lanes, not on who computes them."""

from collections.abc import Sequence
from dataclasses import dataclass

from raystill.config.errors import UserError


@dataclass(frozen=True, slots=True)
class Lane:
    """One forward and backward of a rank in every step."""

    number: int  # number in the step, by which the lane's samples, noise and times are drawn
    # weight of the lane's loss in the mean over lanes: 1, or 0 where the lane only keeps a rank in step with the others
    weight: float


def share(lanes: int, rank: int, world_size: int) -> tuple[Lane, ...]:
    """A rank's lanes: neighbours, and ceil(lanes / world_size) of them on every rank.

    Every forward and backward is a collective at ZeRO stages 2 and 3, so that a rank with one lane less computes its
    last one again, with weight 0.
    """
    first, end = (-(-lanes * r // world_size) for r in (rank, rank + 1))
    own = [Lane(number, 1.0) for number in range(first, end)]
    most = -(-lanes // world_size)
    return (*own, *(Lane(max(first, end) - 1, 0.0) for _ in range(most - len(own))))


def numbers(lanes: Sequence[Lane]) -> list[int]:
    """The numbers of the lanes that a rank reads samples for, each once."""
    return list(dict.fromkeys(lane.number for lane in lanes))


def check_lanes(lanes: int, workers: int, prefix: str = "") -> None:
    """Refuse, with UserError, more workers than a step has lanes; `prefix` stands before the path `training.lanes`."""
    if workers > lanes:
        raise UserError(
            f"cluster.workers is {workers}, and {prefix}training.lanes is {lanes}: {workers - lanes} of the workers "
            f"would compute what others do. Write --set cluster.workers={lanes}, or, for another run whose steps are "
            f"larger, --set {prefix}training.lanes={workers}"
        )


def advice(lanes: int, workers: int) -> str:
    """A line on workers that would be idle for a part of every step; empty where lanes are shared out evenly."""
    if lanes % workers == 0:
        return ""
    most = -(-lanes // workers)
    fitting = [n for n in range(1, lanes + 1) if lanes % n == 0]
    return (
        f"{lanes} lanes on {workers} workers: every step takes the time of {most} lanes, and "
        f"{most * workers - lanes} of {most * workers} forwards count for nothing; "
        f"{', '.join(map(str, fitting))} workers fit"
    )
