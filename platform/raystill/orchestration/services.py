"""What a run needs beside the cluster: the embedded object store, where the settings ask for it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from raystill.data.server import ObjectStoreServer
from raystill.data.shards import list_shards
from raystill.data.store import create_bucket, open_store

log = logging.getLogger(__name__)
EMBEDDED = "s3"  # below the working directory


@contextmanager
def object_store(kind: str, directory: Path, port: int | None = None) -> Iterator[None]:
    """Make S3 addresses reachable: "embedded" starts a server over `directory`/s3 on loopback, "environment" trusts
    AWS_* as they are.

    The variables are set for this process and its children, which is how local Ray workers find the server.
    """
    if kind == "environment":
        yield
        return
    with ObjectStoreServer.start(directory / EMBEDDED, port) as server:
        before = {name: os.environ.get(name) for name in server.environment()}
        os.environ.update(server.environment())
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def upload_sample(sample: str, shards: str) -> int:
    """Copy local shards to where a run reads them, unless the same number is there; creates the bucket. Returns how
    many were copied.
    """
    create_bucket(shards)
    source, target = open_store(sample), open_store(shards)
    entries = list_shards(source)
    present = {entry.key: entry.size for entry in target.list()}
    missing = [entry for entry in entries if present.get(entry.key) != entry.size]
    for entry in tqdm(missing, desc="upload", unit="shard", disable=not missing):
        target.write(entry.key, source.read(entry.key))
    return len(missing)
