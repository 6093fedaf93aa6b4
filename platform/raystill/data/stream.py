"""The Ray Data pipelines: shards derived by a pool of actors, and batches streamed to one training worker."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np
import ray.data
import torch
from ray.data.collate_fn import NumpyBatchCollateFn
from ray.exceptions import RayTaskError
from tqdm import tqdm

from raystill.config.errors import UserError
from raystill.data.batches import read_group
from raystill.data.derive import Index, Shard, Stage, Transform, derive_shard, find, finish
from raystill.data.plan import Group, Plan, groups
from raystill.data.store import Store
from raystill.data.tensors import batch_of, to_device

# size of a part at most: what is read at a time for a worker into Ray's object store, while the part before is consumed
PART_BYTES = 2**28
# share of the readers' object stores that one part of every worker fills: more than two parts at a time would spill
STORE_SHARE = 0.25
READERS = 2  # processes that read for a worker; Ray would start as many as there are tasks, each with its imports
TASKS = 8  # reading tasks of a part, at most
READ_CPUS = 0.05  # logical CPUs of a reader, which waits for the store most of the time


def derive_stream(stage: Stage, *, actors: int, options: Mapping[str, Any]) -> Index:
    """Derive every shard of a stage in a pool of Ray actors, or find the finished ones; samples go from store to
    store, and the driver sees counts only.
    """
    found = find(stage.store, stage.max_bad_fraction)
    if found is not None:
        return found
    keys = stage.source.keys
    _quiet()
    dataset = ray.data.from_items([{"key": key} for key in keys], override_num_blocks=len(keys)).map_batches(
        _ShardWorker,
        fn_constructor_args=(stage.source.store, stage.store, stage.transform),
        batch_size=1,
        # One shard at a time: the first actor that is ready would otherwise take several, and the others none.
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(keys)), max_tasks_in_flight_per_actor=1),
        **options,
    )
    shards = []
    with tqdm(total=len(keys), desc=stage.store.uri.rsplit("/", 2)[-2], unit="shard") as bar:
        for row in dataset.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            rejected, cut = tuple(row["rejected"]), int(row["cut"])
            shards.append(Shard(key=str(row["key"]), count=int(row["count"]), rejected=rejected, cut=cut))
            bar.update()
    return finish(stage.store, stage.identity, shards, stage.max_bad_fraction)


class _ShardWorker:
    """One actor of the pool: keeps the transform's networks between shards."""

    def __init__(self, source: Store, target: Store, make: Callable[[], Transform]) -> None:
        self.source, self.target, self.transform = source, target, make()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        found = [self._derive(str(key)) for key in batch["key"]]
        shards = [shard for shard, _ in found]
        return {
            "key": [s.key for s in shards],
            "count": [s.count for s in shards],
            "rejected": [list(s.rejected) for s in shards],
            "cut": [s.cut for s in shards],
            "error": [error for _, error in found],
        }

    def _derive(self, key: str) -> tuple[Shard, str]:
        """Derive a shard; return it with the text of a UserError, which Ray Data would bury in an error of its own."""
        try:
            return derive_shard(self.source, key, self.target, self.transform), ""
        except UserError as error:
            return Shard(key=key, count=0), str(error)


def stream_batches(
    store: Store,
    plan: Plan,
    lanes: Sequence[int],
    start: int,
    steps: int,
    device: torch.device,
    labels: Mapping[str, str] | None = None,
    workers: int = 1,
) -> Iterator[list[dict[str, Any]]]:
    """Batches of steps `start` to `start + steps`, one for each of the lanes, on `device`: read on nodes with `labels`,
    permuted and prefetched by Ray Data; `workers` share the readers' memory.

    Every rank reads what its own lanes take by one plan: ranks get equally many batches of one size, and the order is a
    function of the plan alone.
    """
    _quiet()
    share = _part_bytes(workers, labels or {})
    per_part = max(1, share // (_bytes_per_sample(store, plan) * plan.lane_size * len(lanes)))
    parts = [(i, min(per_part, start + steps - i)) for i in range(start, start + steps, per_part)]
    # The next part is read while this one is consumed. Ray Data's executor polls without rest, on the training's own
    # cores, as long as its output waits to be taken; a part that has been read whole has no executor any more.
    with ThreadPoolExecutor(1) as ahead:
        waiting = ahead.submit(_part, store, plan, lanes, *parts[0], labels)
        for following in [*parts[1:], None]:
            datasets = _result(waiting)
            if following is not None:
                waiting = ahead.submit(_part, store, plan, lanes, *following, labels)
            every = [
                dataset.iter_torch_batches(
                    batch_size=plan.lane_size, prefetch_batches=2, drop_last=True, collate_fn=_Collate()
                )
                for dataset in datasets
            ]
            for step in zip(*every, strict=True):
                yield [to_device(batch, device) for batch in step]


def nodes(labels: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The connected cluster's living nodes that have all labels, as Ray describes them."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [n for n in alive if all(n.get("Labels", {}).get(name) == value for name, value in labels.items())]


def _part_bytes(workers: int, labels: Mapping[str, str]) -> int:
    """Bytes of a part that the readers' object stores hold without spilling; PART_BYTES where there is no reader."""
    stores = sum(node["Resources"].get("object_store_memory", 0.0) for node in nodes(labels))
    return min(PART_BYTES, int(stores * STORE_SHARE / workers)) if stores else PART_BYTES


def _bytes_per_sample(store: Store, plan: Plan) -> int:
    """Mean size of a stored sample; at least one byte."""
    counts = {shard.key: shard.count for shard in plan.shards if shard.count}
    size = sum(entry.size for entry in store.list() if entry.key in counts)
    return 1 + size // max(1, sum(counts.values()))


def _part(
    store: Store, plan: Plan, lanes: Sequence[int], start: int, steps: int, labels: Mapping[str, str] | None
) -> list[ray.data.Dataset]:
    """Read the samples of some steps into Ray's object store: a dataset for each lane, in the plan's order."""
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    items = [asdict(group) for lane in lanes for group in groups(plan, lane, start, steps)]
    dataset = ray.data.from_items(items, override_num_blocks=min(TASKS, len(items))).map_batches(
        _read,  # type: ignore[arg-type]
        fn_args=(store,),
        batch_size=1,
        compute=ray.data.TaskPoolStrategy(size=READERS),
        num_cpus=READ_CPUS,
        label_selector=dict(labels or {}) or None,
    )
    read = dataset.materialize()
    if len(lanes) == 1:
        return [read]
    found: list[ray.data.Dataset] = read.split_at_indices([i * steps * plan.lane_size for i in range(1, len(lanes))])
    return found


def _result(part: "Future[list[ray.data.Dataset]]") -> list[ray.data.Dataset]:
    """Wait for a part and return its datasets; a reader's UserError comes without Ray's wrapping."""
    try:
        return part.result()
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise


def _quiet() -> None:
    """Keep Ray Data's bars and notes about its plans off this process's terminal; the notes stay in Ray's log files."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)


def _read(batch: dict[str, Any], store: Store) -> Iterator[dict[str, Any]]:
    """Read groups of shards and give their rows as columns."""
    for i in range(len(batch["skip"])):
        keys, (seed, epoch, index) = tuple(str(k) for k in batch["keys"][i]), map(int, batch["order_seed"][i])
        skip, stop = int(batch["skip"][i]), int(batch["stop"][i])
        rows = read_group(store, Group(keys=keys, order_seed=(seed, epoch, index), skip=skip, stop=stop))
        yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class _Collate(NumpyBatchCollateFn):
    """Columns to tensors, as Ray Data's collate function; keys and captions stay lists of text. Ray's arrays are
    read-only, hence the copies.
    """

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:  # type: ignore[override]
        return batch_of({k: v.tolist() if v.dtype.kind in "OU" else v.copy() for k, v in batch.items()})
