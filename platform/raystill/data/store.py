"""Opens stores by their uri: S3 (Amazon's or any server's) and local folders behind the same few operations."""

import shlex
from pathlib import Path

from raystill.config.shipped import FORMER, SCHEME, located
from raystill.data.buckets import S3Store
from raystill.data.local import LocalStore
from raystill.data.objects import Entry, Store, StoreError

__all__ = ["Entry", "Store", "StoreError", "create_bucket", "is_local", "open_store", "removal"]


def open_store(uri: str) -> S3Store | LocalStore:
    """Open `s3://bucket/prefix`, a local path, or what comes with raystill; no server is asked yet (see `check`).
    StoreError for another scheme.
    """
    if uri.startswith(SCHEME) or Path(uri).as_posix() in FORMER:
        return LocalStore(uri=str(located(uri)))
    scheme, mark, _ = uri.partition("://")
    if not uri or (mark and scheme not in {"s3", "file"}):
        raise StoreError(f"there is no store {uri!r}; expected s3://bucket/prefix or a local path.")
    return S3Store(uri=uri) if mark and scheme == "s3" else LocalStore(uri=uri)


def is_local(uri: str) -> bool:
    """Whether a store lies on the disk of the machine that opens it, and is another one elsewhere."""
    return not uri.startswith((SCHEME, "s3://"))


def removal(uri: str) -> str:
    """The command that removes a folder of a store."""
    remove = "rm -r" if is_local(uri) else "aws s3 rm --recursive"
    return f"{remove} {shlex.quote(uri.removeprefix('file://'))}"


def create_bucket(uri: str) -> None:
    """Create the bucket of an `s3://` uri, or the folder of a local one; one that is there already is no error."""
    open_store(uri).create()
