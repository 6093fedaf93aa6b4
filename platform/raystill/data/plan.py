"""Which samples a rank reads, in which order: a pure function of (seed, rank, position), so that a run can be resumed
anywhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from raystill.config.errors import UserError
from raystill.data.derive import Shard


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The endless order of one rank over derived shards.

    Every epoch all shards are permuted and dealt into groups of `shuffle_shards`; group g of the endless sequence
    belongs to rank g modulo `world_size`, and its samples are permuted together. A rank reads as many samples as it
    asks for, so ranks never disagree.
    """

    shards: tuple[Shard, ...]
    seed: int
    rank: int = 0
    world_size: int = 1
    shuffle_shards: int = 4  # shards whose samples are mixed together


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Shards to be read and permuted together: samples `skip` to `stop` of the permutation are the rank's next ones."""

    keys: tuple[str, ...]
    order_seed: tuple[int, int]
    skip: int
    stop: int

    def order(self, count: int) -> np.ndarray:
        """Positions of the group's samples, in reading order; `count` is how many were read."""
        return np.random.default_rng(self.order_seed).permutation(count)[self.skip : self.stop]


def groups(plan: Plan, start: int, count: int) -> Iterator[Group]:
    """The groups that hold samples `start` to `start + count` of the plan's rank."""
    position = 0
    end = start + count
    for index, shards in enumerate(_dealt(plan)):
        if index % plan.world_size == plan.rank:
            size = sum(shard.count for shard in shards)
            skip, stop = max(start - position, 0), min(end - position, size)
            if skip < stop:
                yield Group(keys=tuple(s.key for s in shards), order_seed=(plan.seed, index), skip=skip, stop=stop)
            position += size
            if position >= end:
                return


def _dealt(plan: Plan) -> Iterator[tuple[Shard, ...]]:
    """The endless sequence of shard groups, the same on every rank."""
    shards = [shard for shard in plan.shards if shard.count]
    if not shards:  # else the endless sequence would be an endless loop
        raise UserError(f"there are no samples in the {len(plan.shards)} shards of the plan; derive them anew")
    epoch = 0
    while True:
        order = np.random.default_rng((plan.seed, 7, epoch)).permutation(len(shards))
        for i in range(0, len(order), plan.shuffle_shards):
            yield tuple(shards[j] for j in order[i : i + plan.shuffle_shards])
        epoch += 1
