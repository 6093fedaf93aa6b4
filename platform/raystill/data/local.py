"""A local folder as a store: writes are atomic, and the system's errors come in plain words."""

import builtins
import dataclasses
import errno
import functools
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raystill.data.objects import Entry, StoreError, checked_key


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turn what the file system raises about `path` into a StoreError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise StoreError(f"{path}: no such file. Check the name; list what is there with: ls {path.parent}") from error
    except (IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        raise StoreError(
            f"{path}: a folder stands where a file was expected, or a file as a folder: {error.strerror}."
        ) from error
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreError(
                f"{path}: the disk or quota is full. Free space there; see: df -h {path.parent}"
            ) from error
        raise StoreError(f"{path}: {error.strerror or error}. Check the permissions: ls -ld {path.parent}") from error


@functools.lru_cache(maxsize=65536)
def _md5(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file as S3 does for its etag, so that copied shards keep their identity; size and time key the cache."""
    del size, mtime_ns
    with path.open("rb") as file:
        return hashlib.file_digest(file, functools.partial(hashlib.md5, usedforsecurity=False)).hexdigest()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LocalStore:
    """A folder as a store; it need not exist before the first write."""

    uri: str

    @property
    def root(self) -> Path:
        """The folder that keys are relative to."""
        return Path(self.uri.removeprefix("file://")).expanduser()

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def list(self, prefix: str = "") -> list[Entry]:
        """List all files whose key begins with `prefix`, sorted by key; a folder that does not exist is empty."""
        entries: list[Entry] = []
        with translated(self.root):
            for path in self.root.rglob("*"):
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix) and _whole(path):
                    found = path.stat()
                    entries.append(
                        Entry(
                            key=key,
                            size=found.st_size,
                            etag=_md5(path, found.st_size, found.st_mtime_ns),
                            modified=found.st_mtime,
                        )
                    )
        return sorted(entries, key=lambda entry: entry.key)

    def folders(self) -> builtins.list[str]:
        """List the names of the folders directly below the uri with a file in them, sorted; none where the uri's folder
        does not exist.
        """
        with translated(self.root):
            below = [path for path in self.root.iterdir() if path.is_dir()] if self.root.is_dir() else []
            return sorted(path.name for path in below if any(_whole(inner) for inner in path.rglob("*")))

    def read(self, key: str) -> bytes:
        """Read one file whole."""
        path = self._path(key)
        with translated(path):
            return path.read_bytes()

    def write(self, key: str, data: bytes) -> Entry:
        """Write a file under another name, flush it to the disk, and rename it into place."""
        path = self._path(key)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        with translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)
        return Entry(key=key, size=len(data), etag=hashlib.md5(data, usedforsecurity=False).hexdigest())

    def exists(self, key: str) -> bool:
        """Say whether a file is there."""
        return self._path(key).is_file()

    def delete(self, key: str) -> None:
        """Delete one file; one that is not there is no error."""
        path = self._path(key)
        with translated(path):
            path.unlink(missing_ok=True)

    def join(self, sub: str) -> "LocalStore":
        """Give the store of the folder `sub`."""
        return LocalStore(uri=f"{self.uri.rstrip('/')}/{checked_key(sub.strip('/'))}")

    def check(self) -> None:
        """Make sure that the folder exists."""
        if not self.root.is_dir():
            raise StoreError(f"{self.uri}: there is no such folder. Check the path, or make it: mkdir -p {self.root}")

    def create(self) -> None:
        """Make the folder; one that is there already is no error."""
        with translated(self.root):
            self.root.mkdir(parents=True, exist_ok=True)


def _whole(path: Path) -> bool:
    """Whether a path is a file that has been written to its end."""
    return path.is_file() and not (path.name.startswith(".") and path.name.endswith(".part"))
