"""Batches of rows as tensors, read in a plan's order in this process; `data.stream` does the same through Ray Data."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from raystill.data.plan import Group, Plan, groups
from raystill.data.records import Row, unpack_row
from raystill.data.shards import unpack
from raystill.data.store import Store
from raystill.data.tensors import batch_of, to_device

KEPT_BYTES = 2**31  # of stored shards whose rows stay in memory


def read_group(store: Store, group: Group) -> list[Row]:
    """Read a group's shards and give its rows in their permuted order."""
    rows = [unpack_row(sample) for key in group.keys for sample in unpack(store.read(key), key)]
    return [rows[i] for i in group.order(len(rows))]


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Stack rows into a batch: arrays as tensors with the batch first, keys and captions as lists."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    stacked = {name: np.stack(v) if isinstance(v[0], np.ndarray) else v for name, v in columns.items()}
    return batch_of(stacked)


def local_batches(
    store: Store, plan: Plan, lanes: Sequence[int], start: int, steps: int, device: torch.device
) -> Iterator[list[dict[str, Any]]]:
    """Batches of steps `start` to `start + steps`, one for each of the lanes, on `device`; shards that were
    read last stay in memory.
    """
    cache = _Remembered(store)
    every = [_batches(cache, plan, lane, start, steps, device) for lane in lanes]
    return (list(step) for step in zip(*every, strict=True))


def _batches(
    cache: "_Remembered", plan: Plan, lane: int, start: int, steps: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A lane's batches of steps `start` to `start + steps`."""
    waiting: list[Row] = []
    for group in groups(plan, lane, start, steps):
        waiting += cache.rows(group)
        while len(waiting) >= plan.lane_size:
            yield to_device(collate(waiting[: plan.lane_size]), device)
            del waiting[: plan.lane_size]


class _Remembered:
    """Rows of the shards that were read last, as many as fit `KEPT_BYTES`: a small set of targets is read once."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shards: dict[str, list[Row]] = {}  # the one that was used last is the last one
        self.sizes: dict[str, int] = {}  # bytes

    def rows(self, group: Group) -> list[Row]:
        rows = [row for key in group.keys for row in self._shard(key)]
        return [rows[i] for i in group.order(len(rows))]

    def _shard(self, key: str) -> list[Row]:
        if key not in self.shards:
            data = self.store.read(key)
            self.sizes[key] = len(data)
            self.shards[key] = [unpack_row(sample) for sample in unpack(data, key)]
        rows = self.shards[key] = self.shards.pop(key)
        while len(self.shards) > 1 and sum(self.sizes[name] for name in self.shards) > KEPT_BYTES:
            del self.shards[next(iter(self.shards))]
        return rows
