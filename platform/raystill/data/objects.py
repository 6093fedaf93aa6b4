"""What a store of bytes under keys is: its operations, its entries, its errors and the keys it takes."""

import builtins
import dataclasses
from typing import Protocol, runtime_checkable

from raystill.config.errors import UserError


class StoreError(UserError):
    """A store that does not answer, refuses, lacks what was asked for, is full or gave damaged bytes."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object: its key below the store's uri, its size in bytes, an etag that changes with its content, and when it
    was written, which makes no difference between entries.
    """

    key: str
    size: int
    etag: str
    modified: float = dataclasses.field(default=0.0, compare=False)  # seconds since 1970


@runtime_checkable  # so that tests can check annotations
class Store(Protocol):
    """Bytes under keys; holds nothing but its uri, so that any worker can be sent it. All methods raise StoreError."""

    @property
    def uri(self) -> str:
        """The uri that keys are relative to, as it was given."""
        ...

    def list(self, prefix: str = "") -> list[Entry]:
        """List all objects whose key begins with `prefix`, sorted by key."""
        ...

    def folders(self) -> builtins.list[str]:
        """List the names of the folders directly below the uri, sorted; those without an object are none."""
        ...

    def read(self, key: str) -> bytes:
        """Read one object whole."""
        ...

    def write(self, key: str, data: bytes) -> Entry:
        """Write one object; a reader sees the old bytes or all of the new ones."""
        ...

    def exists(self, key: str) -> bool:
        """Say whether an object is there."""
        ...

    def delete(self, key: str) -> None:
        """Delete one object; one that is not there is no error."""
        ...

    def check(self) -> None:
        """Make sure, before any work is done, that the store answers; errors tell a wrong key, a missing bucket and a
        dead endpoint apart.
        """
        ...

    def join(self, sub: str) -> "Store":
        """Give the store of everything below `sub`."""
        ...


def checked_key(key: str) -> str:
    """Give the key back, or raise StoreError where it would leave the store."""
    if not key or "\\" in key or "\0" in key or any(part in {"", ".", ".."} for part in key.split("/")):
        raise StoreError(
            f"key {key!r} is refused; expected a name such as 'shards/000000.tar', without '..', '//' or backslash."
        )
    return key
