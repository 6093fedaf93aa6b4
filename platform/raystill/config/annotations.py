"""Conversion of plain values to the types that settings are annotated with; a value that would need a guess is
refused.
"""

import dataclasses
import inspect
import logging
import math
import types
from collections.abc import Callable, Mapping
from inspect import get_annotations
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, Literal, Protocol, Union, get_args, get_origin

from raystill.config.errors import UserError
from raystill.config.files import load_class
from raystill.config.fingerprint import former_name, is_group

log = logging.getLogger(__name__)


class MisfitError(Exception):
    """A value does not fit an annotation; `override` turns it into a message."""


def fit(value: Any, hint: Any) -> Any:
    """Return the value as the annotation wants it (a list becomes a tuple, an int a float), or raise `MisfitError`."""
    if hint is Any:
        return value
    if is_group(value):
        return _fit_group(value, hint)
    if isinstance(value, str) and (chosen := _chosen(value, hint)) is not None:
        return chosen()
    if isinstance(value, str) and _bases(hint) and (kind := load_class(value)) is not None:
        return _fit_group(_made(kind, _bases(hint)), hint)
    origin = get_origin(hint)
    if origin is not None:
        return _GENERICS.get(origin, _fit_nothing)(value, get_args(hint))
    return _SCALARS.get(hint, _fit_nothing)(value, ())


def accepts_files(hint: Any) -> bool:
    """Whether an annotation accepts a class of anybody's file."""
    return bool(_bases(hint))


def can_choose(hint: Any) -> bool:
    """Whether an annotation accepts settings of several classes, of which a text chooses one."""
    return len(group_names(hint)) > 1 or accepts_files(hint)


def group_names(hint: Any) -> list[str]:
    """Names of the settings classes that an annotation accepts and that need no argument, so that a text can choose
    one.
    """
    return [name for name, group in _groups(hint).items() if not _required(group)]


def _chosen(name: str, hint: Any) -> type | None:
    """The settings class that a text chooses, also by the name that it had before; None where there is none."""
    known, names = _groups(hint), group_names(hint)
    if name in names:
        return known[name]
    now = next((known[other] for other in names if former_name(known[other]) == name), None)
    if now is not None:
        log.warning("%s is called %s now; the old name works for one more release", name, now.__name__)
    return now


def _groups(hint: Any) -> dict[str, type]:
    return {m.__name__: m for m in (hint, *get_args(hint)) if isinstance(m, type) and dataclasses.is_dataclass(m)}


def _bases(hint: Any) -> list[type]:
    """The abstract classes that an annotation accepts the settings of: a class of anybody's file may implement them."""
    return [m for m in (hint, *get_args(hint)) if isinstance(m, type) and inspect.isabstract(m)]


def _made(kind: type, bases: list[type]) -> Any:
    """The settings of a class of somebody's file. UserError that says what the class lacks."""
    needed = " or ".join(base.__name__ for base in bases)
    if not issubclass(kind, tuple(bases)):
        raise UserError(f"{kind.__name__} is no {needed}: write `class {kind.__name__}({needed})`")
    if missing := sorted(getattr(kind, "__abstractmethods__", ())):
        raise UserError(f"{kind.__name__} lacks {', '.join(missing)}, which every {needed} has")
    told = {name for base in bases for name in get_annotations(base)}
    if unsaid := sorted(name for name in told if not hasattr(kind, name)):
        raise UserError(f"{kind.__name__} lacks {', '.join(unsaid)}: write `{unsaid[0]}: ClassVar[...] = ...`")
    if "__dataclass_fields__" not in vars(kind):  # not inherited ones, in which its own fields are none
        raise UserError(f"{kind.__name__} is no dataclass: write `@dataclass(frozen=True, kw_only=True)` above it")
    if required := _required(kind):
        raise UserError(f"{kind.__name__} has no default for {', '.join(required)}; settings are chosen by name first")
    return kind()


def _required(group: Any) -> list[str]:
    absent = dataclasses.MISSING
    fields = (f for f in dataclasses.fields(group) if f.init)
    return [f.name for f in fields if f.default is absent and f.default_factory is absent]


def _fit_group(value: Any, hint: Any) -> Any:
    classes = [member for member in (hint, get_origin(hint), *get_args(hint)) if isinstance(member, type)]
    # A protocol cannot be checked at run time; mypy checks those who pass values, and texts never get here.
    if any(Protocol in member.__bases__ or isinstance(value, member) for member in classes):
        return value
    raise MisfitError


def _fit_nothing(value: Any, _: tuple[Any, ...]) -> Any:
    raise MisfitError


def _fit_none(value: Any, _: tuple[Any, ...]) -> None:
    if value is not None:
        raise MisfitError


def _fit_bool(value: Any, _: tuple[Any, ...]) -> bool:
    if not isinstance(value, bool):
        raise MisfitError
    return value


def _fit_int(value: Any, _: tuple[Any, ...]) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise MisfitError
    return int(value)


def _fit_float(value: Any, _: tuple[Any, ...]) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise MisfitError
    return float(value)


def _fit_str(value: Any, _: tuple[Any, ...]) -> str:
    # Digits alone are read as an int and turn back into the same text. A float need not ("1e3"): it has to be quoted.
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise MisfitError
    return str(value)


def _fit_path(value: Any, _: tuple[Any, ...]) -> Path:
    return Path(value if isinstance(value, PurePath) else _fit_str(value, ()))


def _fit_tuple(value: Any, items: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise MisfitError
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        raise MisfitError
    return tuple(fit(member, hint) for member, hint in zip(value, items, strict=True))


def _fit_dict(value: Any, items: tuple[Any, ...]) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise MisfitError
    return {fit(key, items[0]): fit(member, items[1]) for key, member in value.items()}


def _fit_literal(value: Any, choices: tuple[Any, ...]) -> Any:
    # The type is compared too, since True == 1; digits may have been meant as text.
    readings = (value, str(value)) if type(value) is int else (value,)
    for reading in readings:
        if any(type(reading) is type(choice) and reading == choice for choice in choices):
            return reading
    raise MisfitError


def _fit_union(value: Any, members: tuple[Any, ...]) -> Any:
    """Return the value as one member of a union wants it: an exact type wins over a conversion, and text is the last
    resort, so that 3 stays an int for `str | int`.
    """
    ordered = sorted(members, key=lambda member: (member is not type(value), member is str, member is Path))
    for member in ordered:
        try:
            return fit(value, member)
        except MisfitError:
            continue
    raise MisfitError


_Fit = Callable[[Any, tuple[Any, ...]], Any]
_SCALARS: dict[Any, _Fit] = {
    type(None): _fit_none,
    bool: _fit_bool,
    int: _fit_int,
    float: _fit_float,
    str: _fit_str,
    Path: _fit_path,
}
_GENERICS: dict[Any, _Fit] = {
    Union: _fit_union,
    types.UnionType: _fit_union,
    Literal: _fit_literal,
    tuple: _fit_tuple,
    dict: _fit_dict,
    Mapping: _fit_dict,
}


def described(hint: Any) -> str:
    """Say in words what an annotation accepts."""
    origin, items = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(described(item) for item in items)
    if origin is Literal:
        return "one of " + ", ".join(repr(item) for item in items)
    if origin is tuple:
        count = "" if items[1:] == (Ellipsis,) else f"{len(items)}: "
        return f"a list of {count}{', '.join(described(item) for item in items if item is not Ellipsis)}"
    return _WORDS.get(hint) or (hint.__name__ if isinstance(hint, type) and origin is None else str(hint))


_WORDS: dict[Any, str] = {type(None): "null", float: "float (finite)", bool: "true or false"}
_EXAMPLES: dict[Any, Any] = {bool: True, int: 8, float: 0.5, str: "text", Path: "some/folder"}


def example(hint: Any) -> Any:
    """Give a JSON value that fits an annotation; None where there is none (a group of settings)."""
    origin, items = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return next((shown for item in items if (shown := example(item)) is not None), None)
    if origin is Literal:
        return items[0]
    if origin is tuple:
        return [example(item) for item in (items[:1] * 2 if items[1:] == (Ellipsis,) else items)]
    return _EXAMPLES.get(hint)
