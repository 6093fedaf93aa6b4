"""The revision of a pipeline: a digest of the files that a loader reads, computed once for each state of the files."""

import hashlib
import json
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from raystill.config.cache import cache_directory
from raystill.config.errors import UserError
from raystill.models.weight_files import read_files

INDEX = "model_index.json"
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")  # parts of a pipeline that no picture here depends on
LARGE = 2**24  # bytes from which on a file's digest is also cached on disk, for other processes
SETTLED_S = 2.0  # a file changed less than this ago may change again within the same timestamp
_FORMER_PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
State = tuple[int, int, int]  # size in bytes, mtime and ctime in nanoseconds


def revision(directory: Path) -> str:
    """Digest of the names and contents of the files of a pipeline's parts, 16 hex digits; UserError where there is no
    pipeline.
    """
    parts = [_files(directory, [part]) for part in sorted(_parts(directory))]
    return _digest(directory, sorted(file for files in parts for file in read_files(files)))


def is_of(directory: Path, found: str | None) -> bool:
    """Whether a stored revision is that of a pipeline's files, as this version or an earlier one of raystill counts, or
    the commit of the Hub that they were fetched at.
    """
    at = directory.resolve()
    if found == at.name and at.parent.name == "snapshots":
        return True
    return found == revision(directory) or found in former_revisions(directory)


def former_revisions(directory: Path) -> tuple[str, ...]:
    """Revisions that earlier versions of raystill, in which stray files counted, gave a pipeline's files; empty where
    they equal today's.
    """
    found = _digest(directory, _files(directory, _FORMER_PARTS))
    return () if found == revision(directory) else (found,)


def _parts(directory: Path) -> list[str]:
    """Names of the parts in a pipeline's index."""
    index = directory / INDEX
    if not index.is_file():
        raise UserError(
            f"{str(directory)!r} is not a diffusers pipeline: it has no {INDEX}; give a directory that save_pretrained "
            "wrote: --set teacher=DIRECTORY"
        )
    entries: dict[str, Any] = json.loads(index.read_text())
    # A part is [library, class]; [null, null] is one that was left out.
    return [name for name, part in entries.items() if isinstance(part, list) and part[0] and name not in UNUSED]


def _files(directory: Path, parts: list[str] | tuple[str, ...]) -> list[Path]:
    return sorted(file for part in parts for file in (directory / part).glob("*") if file.is_file())


def _digest(directory: Path, files: list[Path]) -> str:
    known = _kept(directory)
    sha, fresh = hashlib.sha256(), {}
    for file in files:
        name, stat = str(file.relative_to(directory)), file.stat()
        state = (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
        settled = time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED_S
        if settled and known.get(name, [None])[:-1] == list(state):
            content = known[name][-1]
        else:
            content = _content(file, state) if settled else _content.__wrapped__(file, state)
            if settled and stat.st_size >= LARGE:
                fresh[name] = [*state, content]
        sha.update(name.encode())
        sha.update(bytes.fromhex(content))
    if fresh:
        _keep(directory, {**known, **fresh})
    return sha.hexdigest()[:16]


@lru_cache(maxsize=4096)
def _content(file: Path, state: State) -> str:
    """SHA-256 of a file; its state is a key of the cache only."""
    del state
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _note(directory: Path) -> Path:
    name = hashlib.sha256(str(directory.resolve()).encode()).hexdigest()[:16]
    return cache_directory() / "revisions" / f"{name}.json"


def _kept(directory: Path) -> dict[str, list[Any]]:
    """Digests of large files that any process of this user has computed, with the files' states."""
    try:
        found: dict[str, list[Any]] = json.loads(_note(directory).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _keep(directory: Path, digests: dict[str, list[Any]]) -> None:
    note = _note(directory)
    with suppress(OSError):  # a read-only cache only means that digests are computed again
        note.parent.mkdir(parents=True, exist_ok=True)
        part = note.with_suffix(f".{time.time_ns()}.part")
        part.write_text(json.dumps(digests))
        part.replace(note)
