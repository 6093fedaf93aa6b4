"""Derived shards: each is computed from one source shard, stored at an address made of all that it depends on, and
found there instead of computed again.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from tqdm import tqdm

from raystill.config.digest import canonical, digest
from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint, identity
from raystill.data.records import RejectedSampleError, Row, pack_row
from raystill.data.shards import Sample, list_shards, pack, plain_name, unpack
from raystill.data.store import Entry, Store

log = logging.getLogger(__name__)
INDEX = "index.json"


@runtime_checkable  # so that tests can check annotations
class Transform(Protocol):
    """The computation of a stage, from the samples of a source shard to the rows of a derived one."""

    def read(self, sample: Sample) -> Row:
        """Read what is needed of one sample; RejectedSampleError where it cannot be used."""

    def compute(self, rows: list[Row]) -> list[Row]:
        """Derive the rows of one shard, in order; a stage that uses only some of a shard's samples gives fewer rows."""


@runtime_checkable
class Companion(Protocol):
    """What a transform may have besides: files that belong to all shards of its stage, and captions that it cut."""

    cut: int  # captions of the shard that was computed last that were longer than the text encoder takes

    def beside(self) -> Mapping[str, bytes]:
        """Return the files by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One derived shard: its key below the store, how many samples it holds, which source samples were rejected, with
    reasons, and how many captions were cut.
    """

    key: str
    count: int
    rejected: tuple[str, ...] = ()
    cut: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """The finished shards of a stage, and their identity: all that they depend on."""

    identity: Mapping[str, Any]
    shards: tuple[Shard, ...]

    @property
    def count(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.count for shard in self.shards)

    @property
    def rejected(self) -> list[str]:
        """Every rejected sample with its reason."""
        return [reason for shard in self.shards for reason in shard.rejected]

    @property
    def left_out(self) -> str:
        """The number of rejected samples, and each with its reason, and the number of captions of which an end was left
        out, as lines of text; empty where there is none of either.
        """
        bad, cut = self.rejected, sum(shard.cut for shard in self.shards)
        head = f"{len(bad)} of {self.count + len(bad)} samples were left out:"
        ends = f"{cut} of {self.count} captions are longer than the text encoder takes, and their ends were left out"
        return "\n".join(filter(None, ["\n  ".join([head, *bad]) if bad else "", ends if cut else ""]))


@dataclass(frozen=True, slots=True)
class Source:
    """The shards that a stage reads: all shards of a store, or some of them."""

    store: Store
    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, store: Store, limit: int | None = None) -> "Source":
        """All shards of a store, or its first `limit` ones; ShardError where there are none."""
        return cls(store, tuple(list_shards(store)[:limit]))

    @property
    def keys(self) -> list[str]:
        """Keys of the shards."""
        return [entry.key for entry in self.entries]

    def identity(self, **depends_on: Any) -> dict[str, Any]:
        """The identity of shards derived from these: all that they depend on, which is these shards' names, sizes and
        entity tags, and the given settings.
        """
        return {**self.contents, **{name: identity(value) for name, value in depends_on.items()}}

    @property
    def contents(self) -> dict[str, Any]:
        """The shards' number and a checksum of their names, sizes and entity tags, the same wherever the shards lie."""
        return contents_of(self.entries)


def contents_of(shards: Sequence[Entry]) -> dict[str, Any]:
    """The number of shards and a checksum of their names, sizes and entity tags."""
    rows = [[e.key, e.size, e.etag] for e in shards]
    return {"source_digest": digest(rows), "source_shards": len(rows)}


@dataclass(frozen=True, slots=True)
class Stage:
    """Derived shards as they are asked for: computed once, and found afterwards."""

    source: Source
    store: Store  # where they are kept
    identity: Mapping[str, Any]  # all that they depend on, as their index has it
    transform: Callable[[], Transform]  # called where the stage runs
    max_bad_fraction: float = 0.0  # share of the samples that may be rejected

    @classmethod
    def at(
        cls,
        work: Store,
        folder: str,
        source: Source,
        transform: Callable[[], Transform],
        max_bad_fraction: float = 0.0,
        /,
        **depends_on: Any,
    ) -> "Stage":
        """A stage whose shards are kept in `<work>/<folder>`, at the fingerprint of their source and of what else they
        depend on.
        """
        identity = source.identity(**depends_on)
        return cls(source, place(work, folder, identity), identity, transform, max_bad_fraction)


def place(work: Store, stage: str, identity: Mapping[str, Any]) -> Store:
    """The store of a stage's shards of this identity: `<work>/<stage>/<fingerprint>`."""
    return work.join(f"{stage}/{fingerprint(identity)}")


def find(target: Store, max_bad_fraction: float = 1.0) -> Index | None:
    """Read the index of finished derived shards, and warn of rejected samples; None where the stage is not finished.
    UserError where more samples were rejected than are allowed now.
    """
    if not target.exists(INDEX):
        return None
    found = json.loads(target.read(INDEX))
    shards = tuple(_shard(s["key"], s) for s in found["shards"])
    index = Index(identity=found["identity"], shards=shards)
    _check(index, max_bad_fraction)
    _warn(index)
    return index


def _shard(key: str, found: Mapping[str, Any]) -> Shard:
    """A shard as its note has it; those of before have no number of cut captions."""
    return Shard(key=key, count=found["count"], rejected=tuple(found["rejected"]), cut=found.get("cut", 0))


def derive_shard(source: Store, key: str, target: Store, transform: Transform) -> Shard:
    """Compute and write one derived shard, with its rejected samples in a file beside it, unless a stopped run did."""
    name = plain_name(key)
    note = name.removesuffix(".tar") + ".json"
    if target.exists(note):
        return _shard(name, json.loads(target.read(note)))
    rows, rejected = [], []
    for sample in unpack(source.read(key), key):
        try:
            rows.append(transform.read(sample))
        except RejectedSampleError as error:
            rejected.append(str(error))
    derived = transform.compute(rows) if rows else []
    cut = 0
    if isinstance(transform, Companion):
        cut = transform.cut if rows else 0
        for file, data in transform.beside().items():
            if not target.exists(file):
                target.write(file, data)
    if derived:
        target.write(name, pack(pack_row(row) for row in derived))
    shard = Shard(key=name, count=len(derived), rejected=tuple(rejected), cut=cut)
    target.write(note, json.dumps({"count": shard.count, "rejected": rejected, "cut": cut}).encode())
    return shard


def finish(target: Store, identity: Mapping[str, Any], shards: list[Shard], max_bad_fraction: float) -> Index:
    """Write the index once every shard is there; UserError where nothing is left or too many samples were rejected."""
    index = Index(identity=identity, shards=tuple(sorted(shards, key=lambda s: s.key)))
    _check(index, max_bad_fraction)
    _warn(index)
    body = {"identity": identity, "shards": [canonical(s) for s in index.shards]}
    target.write(INDEX, json.dumps(body, indent=1).encode())
    return index


def _check(index: Index, max_bad_fraction: float) -> None:
    bad, good = len(index.rejected), index.count
    if good == 0 or bad > max_bad_fraction * (good + bad):
        shown = "\n  ".join(index.rejected[:10])
        raise UserError(
            f"{bad} of {good + bad} samples cannot be used, and a fraction of {max_bad_fraction} is allowed:\n"
            f"  {shown}\nMend or remove them, or raise the limit: --set reading.max_bad_fraction=0.2"
        )


def _warn(index: Index) -> None:
    if index.left_out:
        log.warning("%s", index.left_out)


def derive(stage: Stage) -> Index:
    """Derive every shard of a stage in this process, without Ray, or find the finished ones."""
    found = find(stage.store, stage.max_bad_fraction)
    if found is not None:
        return found
    source, transform = stage.source, stage.transform()
    shards = [
        derive_shard(source.store, key, stage.store, transform)
        for key in tqdm(source.keys, desc=stage.store.uri.split("/")[-2], unit="shard")
    ]
    return finish(stage.store, stage.identity, shards, stage.max_bad_fraction)
