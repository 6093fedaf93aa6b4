"""A driver on a node of its own: shards are derived on the teachers' node and streamed by the readers' to a trainer.
Prints where each part ran, and what passed through each node's object store, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray._private.internal_api import node_stats

from raystill.data.derive import Index, Source, Stage
from raystill.data.local import LocalStore
from raystill.data.plan import Plan
from raystill.data.records import Row, pack_row, unpack_row
from raystill.data.shards import Sample, pack
from raystill.data.stream import stream_batches
from raystill.launch.cluster import RayLauncher, ray_session
from raystill.launch.placement import options_of
from raystill.launch.settings import Cluster, Share

SHARDS, ROWS, BATCH = 16, 32, 8
SHAPE = (320, 256, 3)  # 245,760 bytes
CLUSTER = Cluster(
    workers=1,
    worker=Share(cpus=0.5, labels={"role": "trainer"}),
    actors=1,
    actor=Share(cpus=0.5, resources={"teacher": 1.0}),
    reader_labels={"role": "reader"},
)


class Brighter:
    """Adds one to every picture, and the node where it was done."""

    def read(self, sample: Sample) -> Row:
        """A row."""
        return unpack_row(sample)

    def compute(self, rows: list[Row]) -> list[Row]:
        """Rows with a caption that names the node."""
        return [{**row, "image": row["image"] + 1, "caption": node()} for row in rows]


def node() -> str:
    """The role of this process's node."""
    here = ray.get_runtime_context().get_node_id()
    return next(str(one["Labels"].get("role", "head")) for one in ray.nodes() if one["NodeID"] == here)


def write(store: LocalStore) -> None:
    """Shards of noise."""
    noise = np.random.default_rng(0)
    for i in range(SHARDS):
        rows = [
            {"key": f"s{i:02d}{j:02d}", "caption": "", "image": noise.integers(0, 255, SHAPE, dtype=np.uint8)}
            for j in range(ROWS)
        ]
        store.write(f"{i:06d}.tar", pack(pack_row(row) for row in rows))


def consume(store: LocalStore, index: Index, reader_labels: dict[str, str]) -> dict[str, Any]:
    """Stream every sample once to this process."""
    plan = Plan(shards=index.shards, seed=0, lane_size=BATCH)
    keys, derived = set(), set()
    steps = index.count // BATCH
    for (batch,) in stream_batches(store, plan, [0], 0, steps, torch.device("cpu"), reader_labels):
        keys.update(batch["key"])
        derived.update(batch["caption"])
    return {"trained": node(), "derived": sorted(derived), "samples": len(keys)}


def passed() -> dict[str, dict[str, int]]:
    """Bytes of each node's object store, by the node's role."""
    found = {}
    for one in ray.nodes():
        stats = node_stats(one["NodeManagerAddress"], one["NodeManagerPort"], include_memory_info=False).store_stats
        found[one["Labels"].get("role", "head")] = {
            "created": stats.cumulative_created_bytes,
            "spilled": stats.spilled_bytes_total,
            "capacity": int(one["Resources"]["object_store_memory"]),
        }
    return found


def main(directory: Path) -> None:
    """Write, derive, stream, report."""
    source, target = LocalStore(uri=str(directory / "source")), LocalStore(uri=str(directory / "derived"))
    write(source)
    with ray_session(CLUSTER, {}):
        index = RayLauncher(CLUSTER, directory).derive(Stage(Source.of(source), target, {}, Brighter))
        trainer: Any = ray.remote(**options_of(CLUSTER.worker))(consume)
        found = ray.get(trainer.remote(target, index, dict(CLUSTER.reader_labels)))
        print(json.dumps({**found, "bytes": index.count * int(np.prod(SHAPE)), "stores": passed()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
