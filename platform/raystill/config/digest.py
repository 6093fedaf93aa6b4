"""Canonical JSON of complete settings, for people and adapters' cards, and its checksum; addresses of stored results
come from `config.fingerprint`.
"""

import dataclasses
import hashlib
import json
from pathlib import PurePath
from typing import Any


def canonical(value: Any) -> Any:
    """Turn nested settings into plain JSON values; a dataclass carries its class name, so that equal fields of two
    classes differ. TypeError for other values.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    if isinstance(value, dict):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"settings hold plain values, found {type(value).__name__}: {value!r}")


def canonical_json(value: Any) -> str:
    """Serialise settings to one JSON text with sorted keys; non-finite numbers are refused with ValueError."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """Give a checksum of `value` as it is, all of it: the first 16 hex digits of the SHA-256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:16]
