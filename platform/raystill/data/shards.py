"""WebDataset shards: tar files, plain or gzipped; members are grouped into samples by the name before the first dot."""

import dataclasses
import gzip
import io
import itertools
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator

from webdataset.writer import TarWriter

from raystill.config.errors import UserError
from raystill.data.store import Entry, Store

BLOCK_BYTES = 512
SUFFIX = ".tar"
SUFFIXES = (SUFFIX, ".tar.gz")  # suffixes of the shards that are read; only plain tar files are written
_KEY_PART = re.compile(r"[^\x00-\x1f\\/.]+")
_MEMBER = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*")


class ShardError(UserError):
    """A shard that cannot be read or written: the message names the shard and the member."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sample: `key` is its path without extension, `members` maps extensions ("webp", "latent.npy") to bytes."""

    key: str
    members: dict[str, bytes]


def _checked_name(name: str, where: str) -> tuple[str, str]:
    """Split a member's name into key and extension; ShardError where it would leave the folder it is unpacked into."""
    head, _, last = name.removeprefix("./").rpartition("/")
    stem, _, extension = last.partition(".")
    parts = [*head.split("/"), stem] if head else [stem]
    if not all(_KEY_PART.fullmatch(part) for part in parts):
        raise ShardError(
            f"{where}: member name {name!r} is refused; expected a relative path without '..', "
            "backslash or a dot in a folder's name, "
            "such as 'animals/000017.webp'. Rename it and pack the shard again."
        )
    if not _MEMBER.fullmatch(extension.lower()):
        raise ShardError(
            f"{where}: member {name!r} has no extension; expected one such as '.webp', '.txt' or '.latent.npy'."
        )
    return "/".join(parts), extension.lower()


def pack(samples: Iterable[Sample]) -> bytes:
    """Give the bytes of a shard; the same samples give the same bytes. ShardError for a bad or repeated key."""
    buffer = io.BytesIO()
    seen: set[str] = set()
    # GNU rather than webdataset's default USTAR format: it has no limit on the length of a name.
    with TarWriter(buffer, encoder=False, mtime=0, user="root", group="root", format="GNU_FORMAT") as writer:
        for sample in samples:
            if sample.key in seen:
                raise ShardError(
                    f"two samples have the key {sample.key!r}; keys must differ, as a reader joins members by key."
                )
            if not sample.members:
                raise ShardError(
                    f"sample {sample.key!r} has no members; expected at least one, such as {{'webp': ...}}."
                )
            for extension in sample.members:
                if _checked_name(f"{sample.key}.{extension}", "packing") != (sample.key, extension):
                    raise ShardError(
                        f"sample {sample.key!r}: a key has no dot and an extension is lower case, found {extension!r}."
                    )
            seen.add(sample.key)
            writer.write({"__key__": sample.key, **sample.members})
    return buffer.getvalue()


def _members(data: bytes, name: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (key, extension, bytes) of every file; ShardError names shard, member and byte where it breaks."""
    end, last = 0, "the beginning"
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for info in tar:
                stop = info.offset_data + info.size
                if stop > len(data):
                    raise ShardError(
                        f"{name}: cut off inside member {info.name!r}, which ends at byte {stop} of {len(data)}. "
                        "Upload it again."
                    )
                if not info.isdir():
                    yield (*_checked_name(info.name, name), _regular(data, info, name))
                end, last = -(-stop // BLOCK_BYTES) * BLOCK_BYTES, f"member {info.name!r}"
    except tarfile.TarError as error:
        raise ShardError(
            f"{name}: damaged after {last}, at byte {end}: {error}. Expected an uncompressed tar; upload it again."
        ) from error
    # tarfile takes a damaged header for the end and says nothing: only the closing zeros prove that all was read.
    if len(data) < end + BLOCK_BYTES:
        raise ShardError(
            f"{name}: cut off after {last}, at byte {len(data)}: a tar's closing zeros are missing. Upload it again."
        )
    if data[end:].strip(b"\0"):
        raise ShardError(f"{name}: the header after {last}, at byte {end}, is damaged. Upload the shard again.")


def _regular(data: bytes, info: tarfile.TarInfo, name: str) -> bytes:
    if not info.isreg() or info.issparse():
        raise ShardError(
            f"{name}: member {info.name!r} is a link or a special file. Pack the shard again with plain files only."
        )
    return data[info.offset_data : info.offset_data + info.size]


def unpack(data: bytes, name: str) -> Iterator[Sample]:
    """Yield the samples of the shard called `name` in order; ShardError names a damaged, repeated or refused member."""
    if name.endswith(".gz"):
        data = _decompressed(data, name)
    seen: set[str] = set()
    for key, group in itertools.groupby(_members(data, name), key=lambda member: member[0]):
        if key in seen:
            raise ShardError(
                f"{name}: the members of {key!r} do not stand together; pack it with its files sorted by name."
            )
        seen.add(key)
        members: dict[str, bytes] = {}
        for _, extension, content in group:
            if extension in members:
                raise ShardError(
                    f"{name}: member '{key}.{extension}' appears twice. Pack the shard again without the copy."
                )
            members[extension] = content
        yield Sample(key=key, members=members)


def plain_name(key: str) -> str:
    """The name of a shard derived from the one called `key`; derived shards are never compressed."""
    return key.removesuffix(".gz")


def _decompressed(data: bytes, name: str) -> bytes:
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ShardError(f"{name}: its gzip compression is damaged ({error}). Upload the shard again.") from error


def list_shards(store: Store) -> list[Entry]:
    """List the shards of a store, sorted by key; ShardError says what lies there where none does."""
    entries = store.list()
    shards = [entry for entry in entries if entry.key.endswith(SUFFIXES)]
    if shards:
        return shards
    found = ", ".join(entry.key for entry in entries[:5]) + (", ..." if len(entries) > 5 else "")
    holds = f"holds {len(entries)} other files ({found})" if entries else "is empty"
    raise ShardError(
        f"no shards under {store.uri}: it {holds}; expected files named *{SUFFIX}. "
        f"Build them with: raystill shards folder PICTURES --out {store.uri}"
    )


def write_shards(store: Store, samples: Iterable[Sample], per_shard: int = 256, prefix: str = "") -> Iterator[Entry]:
    """Write samples in order as `{prefix}000000.tar` and on, yielding each entry; ShardError where shards are there."""
    if per_shard < 1:
        raise ShardError(f"per_shard is {per_shard}; expected 1 or more samples to a shard.")
    # A shorter build over a longer one would leave old shards behind the new ones, and training would read both.
    old = [entry.key for entry in store.list(prefix) if entry.key.endswith(SUFFIXES)]
    if old:
        raise ShardError(
            f"{store.uri} already holds {len(old)} shards ({old[0]} ...); choose another --out or delete them first."
        )
    rest = iter(samples)
    for index in itertools.count():
        batch = list(itertools.islice(rest, per_shard))
        if not batch:
            return
        yield store.write(f"{prefix}{index:06d}{SUFFIX}", pack(batch))
