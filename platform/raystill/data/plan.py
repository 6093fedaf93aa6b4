"""Which samples a lane reads at which step: a pure function of (seed, lane, step) and the derived shards, so that a run
can be resumed anywhere, on any number of ranks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise

import numpy as np

from raystill.config.errors import UserError
from raystill.data.derive import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The endless order of samples over derived shards, and which lane takes which of them.

    Every epoch all shards are permuted and dealt into groups of `shuffle_shards`, whose samples are permuted together:
    one sequence, in which epochs follow each other and each holds every sample once. Step s takes the samples
    s N to (s + 1) N of it, N = lanes * lane_size, except within rounds, runs of whole steps of one epoch: over the
    steps of a round each lane takes samples that lie side by side, about as many as a group has, so that it reads few
    shards. Every sample is seen once an epoch, whatever the number of ranks, and what is left of an epoch after its
    last whole step opens the next one.
    """

    shards: tuple[Shard, ...]
    seed: int
    lanes: int = 1
    lane_size: int = 32  # samples of each lane in a step
    shuffle_shards: int = 4  # shards whose samples are mixed together

    def __post_init__(self) -> None:
        if not self.samples:  # else the endless sequence would be an endless loop
            raise UserError(f"there are no samples in the {len(self.shards)} shards of the plan; derive them anew")

    @property
    def samples(self) -> int:
        """The number of samples in an epoch."""
        return sum(shard.count for shard in self.shards)

    @property
    def step_size(self) -> int:
        """The number N of samples in a step, over all lanes."""
        return self.lanes * self.lane_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Shards to be read and permuted together: samples `skip` to `stop` of the permutation are the next ones."""

    keys: tuple[str, ...]
    order_seed: tuple[int, int, int]
    skip: int
    stop: int

    def order(self, size: int) -> np.ndarray:
        """Positions of the group's samples, in reading order; `size` is how many were read."""
        return np.random.default_rng(self.order_seed).permutation(size)[self.skip : self.stop]


def groups(plan: Plan, lane: int, start: int, steps: int) -> Iterator[Group]:
    """The groups that hold what a lane takes in steps `start` to `start + steps`, in that order."""
    for first, last in _stretches(plan, lane, start, start + steps):
        yield from _between(plan, first, last)


def _stretches(plan: Plan, lane: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """What a lane takes in steps `start` to `end`, as stretches (first, last) of the endless sequence."""
    waiting = None
    while start < end:
        begun, length = _round(plan, start)
        until = min(begun + length, end)
        first = begun * plan.step_size + (lane * length + start - begun) * plan.lane_size
        last = first + (until - start) * plan.lane_size
        if waiting is not None and waiting[1] != first:
            yield waiting
            waiting = None
        waiting = (waiting[0] if waiting else first, last)
        start = until
    if waiting is not None:
        yield waiting


def _round(plan: Plan, step: int) -> tuple[int, int]:
    """First step and number of steps of the round that a step is in; a step of two epochs is a round of its own."""
    size, samples = plan.step_size, plan.samples
    epoch = step * size // samples
    first, end = -(-epoch * samples // size), (epoch + 1) * samples // size  # whole steps of the epoch
    if not first <= step < end:
        return step, 1
    filled = sum(shard.count > 0 for shard in plan.shards)
    longest = max(1, round(min(plan.shuffle_shards, filled) * samples / filled / plan.lane_size))
    begun = first + (step - first) // longest * longest
    return begun, min(longest, end - begun)


def _between(plan: Plan, first: int, last: int) -> Iterator[Group]:
    """The groups that hold samples `first` to `last` of the endless sequence."""
    for epoch in count(first // plan.samples):
        begun = epoch * plan.samples
        if begun >= last:
            return
        for index, (shards, skip, stop) in enumerate(_cut(plan, epoch, first - begun, last - begun)):
            if skip < stop:
                keys = tuple(shard.key for shard in shards)
                yield Group(keys=keys, order_seed=(plan.seed, epoch, 1 + index), skip=skip, stop=stop)


def _cut(plan: Plan, epoch: int, first: int, last: int) -> Iterator[tuple[list[Shard], int, int]]:
    """The groups of an epoch, each with the part of it that lies between samples `first` and `last` of the epoch."""
    shards = [shard for shard in plan.shards if shard.count]
    order = np.random.default_rng((plan.seed, epoch, 0)).permutation(len(shards))
    dealt = [[shards[j] for j in order[i : i + plan.shuffle_shards]] for i in range(0, len(order), plan.shuffle_shards)]
    ends = np.cumsum([0, *(sum(shard.count for shard in group) for group in dealt)]).tolist()
    for group, (begun, end) in zip(dealt, pairwise(ends), strict=True):
        yield group, max(first - begun, 0), min(last, end) - begun
