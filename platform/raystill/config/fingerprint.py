"""Addresses of stored results, made from the settings that a result depends on and nothing else.

Each field with a default declares, in its own line, how it counts in addresses:

    steps: int = introduced(1000)                      # left out where it is 1000, whatever the default is later
    end: str = introduced("signal", now="teacher")     # default changed: runs that rely on it have new addresses
    path: RayPath = introduced_group(RayPath)          # left out where it is what RayPath() was when this was written
    log_every: Knob[int] = 10                          # speed or reports only: never counts
    lanes: int = introduced(2, former="batches")       # renamed: counts by its first name, which can still be typed

So a new field changes no address, and a changed default changes those of the runs that rely on it. A class whose
results change while its settings stay raises its `revision`: a ClassVar[int], 1 where there is none, or a field. A
class of somebody's own file counts by the file's text as well.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from pathlib import PurePath
from typing import Annotated, Any, TypeAlias, TypeVar, get_type_hints

log = logging.getLogger(__name__)
T = TypeVar("T")
FORMAT = 2  # of addresses; those of format 1 are digests of all settings (`config.legacy`)
KNOB = object()
Knob: TypeAlias = Annotated[T, KNOB]  # marks a setting that changes only speed, reports, names or locations
INTRODUCED = "introduced"  # key of a field's metadata: the function that gives the introduced identity
FORMER = "former"  # key of a field's metadata, and attribute of a class: the name that it was introduced with
SOURCE = "source_digest"  # attribute of classes of users' files: a digest of the text, by which they are told apart
_SAME: Any = object()


def is_group(value: Any) -> bool:
    """Tell whether a value is itself made of settings: an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def introduced(value: T, *, now: T = _SAME, former: str = "") -> T:
    """Declare a field by the value that it had when it was introduced, which is never edited; `now` is the field's
    default where the default has been changed since, and `former` its first name where it has been renamed since.
    """
    named = {FORMER: former} if former else {}
    declared: T = dataclasses.field(
        default=value if now is _SAME else now, metadata={INTRODUCED: partial(identity, value), **named}
    )
    return declared


def introduced_group(made: Callable[[], T], *, now: Callable[[], T] | None = None) -> T:
    """Declare a field that is a group of settings, by its class or a `functools.partial` of it, as it was introduced:
    with the values that its own fields were introduced with, at revision 1. `now` makes the field's default where the
    default has been changed since.
    """
    declared: T = dataclasses.field(default_factory=now or made, metadata={INTRODUCED: partial(_made, made)})
    return declared


def identity(value: Any, without: Collection[str] = ()) -> Any:
    """The part of nested settings that an address depends on, as plain JSON values: the canonical form without knobs,
    without fields whose value is the introduced one, and with every revision above 1. `without` are dotted paths of
    settings that are left out, too. TypeError for a value that is no setting.
    """
    if is_group(value):
        kind = type(value)
        values = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in without}
        return _group(kind, values, revision_of(kind), without)
    if isinstance(value, Mapping):
        return {str(k): identity(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [identity(v) for v in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)  # a recipe may have written 3 where the command line gives 3.0
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(f"settings hold plain values, found {type(value).__name__}: {value!r}")


def fingerprint(value: Any) -> str:
    """The address of a result that depends on these settings alone: the first 16 hex digits of the SHA-256 of the
    format number and the settings' identity. ValueError for a number that is not finite.
    """
    text = json.dumps([FORMAT, identity(value)], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def knobs(kind: type) -> frozenset[str]:
    """Names of a dataclass's fields that are marked as `Knob` and never count in addresses."""
    hints = get_type_hints(kind, include_extras=True)
    marked = {name for name, hint in hints.items() if any(mark is KNOB for mark in getattr(hint, "__metadata__", ()))}
    return frozenset(field.name for field in dataclasses.fields(kind) if field.name in marked)


def revision_of(kind: type) -> int:
    """Revision of a class of settings, raised whenever the class's results changed; 1 where the class has none, or has
    it as a field.
    """
    if any(field.name == "revision" for field in dataclasses.fields(kind)):
        return 1
    return int(getattr(kind, "revision", 1))


def former_name(declared: "type | dataclasses.Field[Any]") -> str:
    """The name that a class or a field of settings was introduced with, by which it counts in addresses."""
    if isinstance(declared, type):
        return str(vars(declared).get(FORMER, declared.__name__))
    return str(declared.metadata.get(FORMER, declared.name))


def by_former_name(module: Mapping[str, Any]) -> Callable[[str], Any]:
    """A module's `__getattr__`, by which recipes of users' files still import its classes by their former names."""

    def found(name: str) -> Any:
        for kind in list(module.values()):
            if isinstance(kind, type) and FORMER in vars(kind) and former_name(kind) == name:
                log.warning("%s is called %s now; the old name works for one more release", name, kind.__name__)
                return kind
        raise AttributeError(f"module {module['__name__']!r} has no attribute {name!r}")

    return found


def as_introduced(field: "dataclasses.Field[Any]", found: Any) -> bool:
    """Whether an identity is the one that a field was introduced with."""
    return INTRODUCED in field.metadata and bool(found == introduced_value(field))


def introduced_value(field: "dataclasses.Field[Any]") -> Any:
    """The identity that a field was introduced with; None where it has had no default."""
    made = field.metadata.get(INTRODUCED)
    return None if made is None else made()


def _made(made: Any) -> Any:
    """The identity that a group of settings was introduced with, from its class or a partial of it."""
    kind, given = (made.func, made.keywords) if isinstance(made, partial) else (made, {})
    if not isinstance(kind, type):
        raise TypeError(f"introduced_group takes a class or a functools.partial of one, found {made!r}")
    if not dataclasses.is_dataclass(kind):
        return identity(kind())
    return _group(kind, {name: _given(value) for name, value in given.items()}, 1)


def _given(value: Any) -> Any:
    """The introduced value of one setting of a group; of a group within it only the fields that differ from their
    defaults.
    """
    if not is_group(value):
        return value
    default = {
        f.name: f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        for f in dataclasses.fields(value)
    }
    found = {name: getattr(value, name) for name in default}
    return _group(type(value), {name: one for name, one in found.items() if one != default[name]}, 1)


def _group(kind: type, values: Mapping[str, Any], revision: int, without: Collection[str] = ()) -> dict[str, Any]:
    known: dict[str, Any] = {"kind": former_name(kind), **({} if revision == 1 else {"revision": revision})}
    if hasattr(kind, SOURCE):
        known[SOURCE] = getattr(kind, SOURCE)
    for field in dataclasses.fields(kind):
        if field.name in values and field.name not in knobs(kind):
            found = identity(values[field.name], _below(without, field.name))
            if not as_introduced(field, found):
                known[former_name(field)] = found
    return known


def _below(paths: Collection[str], name: str) -> list[str]:
    return [path.removeprefix(f"{name}.") for path in paths if path.startswith(f"{name}.")]
