"""The object store that a run needs beside the cluster: an embedded one where the settings ask for it."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tqdm import tqdm

from raystill.config.errors import UserError
from raystill.data.shards import SUFFIXES, list_shards
from raystill.data.store import Entry, Store, create_bucket, open_store

log = logging.getLogger(__name__)
EMBEDDED = "s3"  # folder of the embedded object store, below the home directory
PATIENCE_S = 20.0  # seconds to wait for another process's server that is just starting or stopping


@contextmanager
def object_store(kind: str, directory: Path, port: int | None = None) -> Iterator[Mapping[str, str]]:
    """Make S3 addresses reachable: "embedded" starts a server over `directory`/s3 on loopback, or shares the one that
    another process runs there; "environment" trusts AWS_* as they are. Gives the environment variables that are set for
    this process and its children; workers of a cluster that runs already need them, too.
    """
    if kind == "environment":
        yield {}
        return
    before = {name: value for name, value in os.environ.items() if _directs(name)}
    try:
        with ExitStack() as stack:
            _replace({})
            variables = _server(stack, directory / EMBEDDED, port)
            _replace(variables)
            yield variables
    finally:
        _replace(before)


def _server(stack: ExitStack, folder: Path, port: int | None) -> dict[str, str]:
    """The environment variables of a server over `folder`: a new one, stopped with the stack, or another process's."""
    from raystill.data.server import DirectoryInUseError, ObjectStoreServer, running  # of an extra

    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return stack.enter_context(ObjectStoreServer.start(folder, port)).environment()
        except DirectoryInUseError:
            shared = running(folder)
            if shared is not None:
                log.info("sharing the S3 server over %s, which stops with the process that started it", folder)
                return shared
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


def _directs(name: str) -> bool:
    """Say whether a variable tells boto3 or MLflow where to go, or as whom; any of them may win over ours."""
    return name.startswith("AWS_") or name == "MLFLOW_S3_ENDPOINT_URL"


def _replace(variables: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if _directs(name)]:
        del os.environ[name]
    os.environ.update(variables)


def upload_sample(sample: str, shards: str) -> int:
    """Copy local shards to the store that a run reads, unless they are there, and create its bucket. Return how many
    were copied; UserError, and nothing copied, where other shards are there.
    """
    create_bucket(shards)
    source, target = open_store(sample), open_store(shards)
    entries = {entry.key: entry for entry in list_shards(source)}
    present = [entry for entry in target.list() if entry.key.endswith(SUFFIXES)]
    others = [e.key for e in present if e.key not in entries or not _same(source, entries[e.key], target, e)]
    if others:
        raise UserError(
            f"{shards} holds {len(others)} shards that are not those of the sample {sample} ({others[0]} ...), and a "
            "run would train on both. Leave the sample out: --set sample=null, or name another place: --set shards=URI"
        )
    missing = entries.keys() - {entry.key for entry in present}
    for key in tqdm(sorted(missing), desc="upload", unit="shard", disable=not missing):
        target.write(key, source.read(key))
    return len(missing)


def _same(source: Store, entry: Entry, target: Store, there: Entry) -> bool:
    """Compare two shards by size and entity tag; where the tags are of different kinds, by content."""
    if entry.size != there.size:
        return False
    return entry.etag == there.etag or source.read(entry.key) == target.read(there.key)
