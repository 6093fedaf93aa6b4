"""Opens stores by their uri: S3 (Amazon's or any server's) and local folders behind the same few operations."""

from raystill.config.shipped import SCHEME, located
from raystill.data.buckets import S3Store
from raystill.data.local import LocalStore
from raystill.data.objects import Entry, Store, StoreError

__all__ = ["Entry", "Store", "StoreError", "create_bucket", "open_store"]


def open_store(uri: str) -> S3Store | LocalStore:
    """Open `s3://bucket/prefix`, a local path, or what comes with raystill; no server is asked yet (see `check`).
    StoreError for another scheme.
    """
    if uri.startswith(SCHEME):
        return LocalStore(uri=str(located(uri)))
    scheme, mark, _ = uri.partition("://")
    if not uri or (mark and scheme not in {"s3", "file"}):
        raise StoreError(f"there is no store {uri!r}; expected s3://bucket/prefix or a local path.")
    return S3Store(uri=uri) if mark and scheme == "s3" else LocalStore(uri=uri)


def create_bucket(uri: str) -> None:
    """Create the bucket of an `s3://` uri, or the folder of a local one; one that is there already is no error."""
    open_store(uri).create()
