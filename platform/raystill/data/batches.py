"""Batches of rows as tensors, read in a plan's order in this process; `data.stream` does the same through Ray Data."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from raystill.data.plan import Group, Plan, groups
from raystill.data.records import Row, unpack_row
from raystill.data.shards import unpack
from raystill.data.store import Store


def read_group(store: Store, group: Group) -> list[Row]:
    """Read a group's shards and give its rows in their permuted order."""
    rows = [unpack_row(sample) for key in group.keys for sample in unpack(store.read(key), key)]
    return [rows[i] for i in group.order(len(rows))]


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Stack rows into a batch: arrays as tensors with the batch first, keys and captions as lists."""
    first = rows[0]
    batch: dict[str, Any] = {}
    for name, value in first.items():
        column = [row[name] for row in rows]
        batch[name] = torch.from_numpy(np.stack(column)) if isinstance(value, np.ndarray) else column
    return batch


def local_batches(
    store: Store, plan: Plan, lanes: Sequence[int], start: int, steps: int, device: torch.device
) -> Iterator[list[dict[str, Any]]]:
    """Batches of steps `start` to `start + steps`, one for each of the lanes, on `device`; shards stay in memory once
    read.
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
    """Rows of every shard read so far, kept since derived shards are small beside the network that learns from them."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.shards: dict[str, list[Row]] = {}

    def rows(self, group: Group) -> list[Row]:
        for key in group.keys:
            if key not in self.shards:
                self.shards[key] = [unpack_row(s) for s in unpack(self.store.read(key), key)]
        rows = [row for key in group.keys for row in self.shards[key]]
        return [rows[i] for i in group.order(len(rows))]


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch's tensors without waiting for the copies."""
    return {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
