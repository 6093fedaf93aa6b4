"""Overrides of settings by dotted path, checked against the annotations of the fields they replace.

One function serves the command line (`--set method.path.sigma=0.1`), Ray Tune and the tests.
"""

import ast
import dataclasses
import difflib
import json
import logging
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

from raystill.config.annotations import MisfitError, accepts_files, can_choose, described, example, fit, group_names
from raystill.config.errors import UserError
from raystill.config.fingerprint import former_name, is_group

log = logging.getLogger(__name__)
Settings = TypeVar("Settings")


def override(run: Settings, changes: Mapping[str, Any]) -> Settings:
    """Return a copy of nested settings with new values at dotted paths; `UserError` for an unknown path or wrong type.

    A group of settings is replaced by another that its field accepts, or by its name (`method.times=UniformTimes`),
    before any field below it is set. All other changes are applied at once, so that a check over several fields
    (`__post_init__`) sees the final values.
    """
    known = dict(_nodes(run))
    changes = renamed(run, changes)
    chosen = {path: value for path, value in changes.items() if isinstance(value, str) and is_group(known.get(path))}
    outer = {path: value for path, value in chosen.items() if not any(path.startswith(f"{other}.") for other in chosen)}
    if outer and len(outer) < len(changes):
        return override(override(run, outer), {path: value for path, value in changes.items() if path not in outer})
    for path in changes:
        if path not in known:
            raise UserError(_unknown(path, known))
    rebuilt: Settings = _rebuilt(run, "", changes)
    return rebuilt


def paths(run: Any) -> dict[str, Any]:
    """Return every setting that is not itself a group of settings, by dotted path, in the order of declaration."""
    return {path: value for path, value in _nodes(run) if not is_group(value)}


def shown(run: Any) -> dict[str, Any]:
    """Return every setting as `override` takes it, by dotted path: `paths`, and before the fields of a group that could
    be of another class the name of its class.
    """
    chosen = {path: type(group).__name__ for path, group in _choices(run)}
    return {path: chosen.get(path, value) for path, value in _nodes(run) if path in chosen or not is_group(value)}


def _choices(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every group of settings below a group that could be of another class."""
    hints = get_type_hints(type(group))
    for field in dataclasses.fields(group):
        if field.init and is_group(value := getattr(group, field.name)):
            if can_choose(hints[field.name]):
                yield prefix + field.name, value
            yield from _choices(value, f"{prefix}{field.name}.")


def setting(run: Any, path: str) -> Any:
    """The value at a dotted path as `override` takes it, where a group of settings is given by its class's name.
    `UserError` for an unknown path.
    """
    known = dict(_nodes(run))
    if path not in known:
        raise UserError(_unknown(path, known))
    value = known[path]
    return type(value).__name__ if is_group(value) else value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Read `path=value` texts; a value is JSON, a Python literal or else text. `UserError` for a path given twice."""
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = (part.strip() for part in assignment.partition("="))
        if not equals or not path:
            raise UserError(f"found {assignment!r}, expected path=value, for example method.path.sigma=0.1")
        if path in changes:
            raise UserError(f"{path} is set twice, to {_found(changes[path])} and to {text!r}; keep one of them")
        changes[path] = _parsed(text)
    return changes


def renamed(run: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes by the present paths of settings; those that are typed by a former name are told of. UserError for one
    that is typed by both. Paths below a group that is chosen anew stay, since another group may have such a field.
    """
    known, now, found = dict(_nodes(run)), dict(former_paths(run)), dict[str, Any]()
    anew = tuple(f"{path}." for path in changes if is_group(known.get(path)))
    for path, value in changes.items():
        new = path if path in known or path.startswith(anew) else now.get(path, path)
        if new != path:
            log.warning("%s is called %s now; the old name works for one more release", path, new)
            if new in changes:
                raise UserError(f"{new} is set twice, once by its former name {path}; keep one of them")
        found[new] = value
    return found


def former_paths(group: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Former and present path of every setting below a group that has been renamed."""
    for field in dataclasses.fields(group):
        if (old := former_name(field)) != field.name:
            yield prefix + old, prefix + field.name
        if field.init and is_group(value := getattr(group, field.name)):
            yield from former_paths(value, f"{prefix}{field.name}.")


def _nodes(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every settable field below a group, groups included; a field outside `__init__` is derived and not settable."""
    for field in dataclasses.fields(group):
        if field.init:
            value = getattr(group, field.name)
            yield prefix + field.name, value
            if is_group(value):
                yield from _nodes(value, f"{prefix}{field.name}.")


def _rebuilt(group: Any, prefix: str, changes: Mapping[str, Any]) -> Any:
    hints = get_type_hints(type(group))
    replaced: dict[str, Any] = {}
    for field in dataclasses.fields(group):
        path, present = prefix + field.name, getattr(group, field.name)
        below = [other for other in changes if other.startswith(f"{path}.")]
        if path in changes and below:
            raise UserError(f"{path} is set as a whole and in part ({', '.join(below)}); keep one of them")
        if path in changes:
            replaced[field.name] = _checked(path, changes[path], hints[field.name], present)
        elif below:
            replaced[field.name] = _rebuilt(present, f"{path}.", changes)
    return dataclasses.replace(group, **replaced) if replaced else group


def _checked(path: str, value: Any, hint: Any, present: Any) -> Any:
    try:
        return fit(value, hint)
    except MisfitError:
        found = f"{path}: found {_found(value)}, expected"
        if is_group(present):
            below = ", ".join(f"{path}.{name}" for name, _ in _nodes(present) if "." not in name)
            known = {name.lower(): name for name in group_names(hint)}
            near = difflib.get_close_matches(str(value).lower(), known, n=1)
            asked = f" (did you mean {known[near[0]]}?)" if near else ""
            own = ", or a class of a file (FILE.py:CLASS)" if accepts_files(hint) else ""
            raise UserError(
                f"{found} {' or '.join(known.values()) or type(present).__name__}, a group of settings{own}{asked}; "
                f"for {type(present).__name__} set {below or 'nothing'}"
            ) from None
        typed = shlex.quote(f"{path}={json.dumps(example(hint))}")
        raise UserError(f"{found} {described(hint)}; write for example --set {typed}") from None


def _unknown(path: str, known: Mapping[str, Any]) -> str:
    parent, _, last = path.rpartition(".")
    if parent in known and not is_group(known[parent]):
        return f"there is no setting {path!r}: {parent} is {_found(known[parent])}, which has no fields"
    by_name: dict[str, list[str]] = {}
    for other in known:
        by_name.setdefault(other.rpartition(".")[2], []).append(other)
    near = [] if parent in known else difflib.get_close_matches(path, known, n=3, cutoff=0.7)
    for name in difflib.get_close_matches(last, by_name, n=2, cutoff=0.7):
        near += by_name[name]
    if near:
        nearest = difflib.get_close_matches(path, set(near), n=4, cutoff=0.0)
        return f"there is no setting {path!r}; did you mean {' or '.join(nearest)}?"
    siblings = [other for other in known if other.rpartition(".")[0] == (parent if parent in known else "")]
    return f"there is no setting {path!r}; expected one of {', '.join(siblings)}"


def _found(value: Any) -> str:
    return "None" if value is None else f"{value!r} ({type(value).__name__})"


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except ValueError:
        pass
    # Only what looks like a Python literal: 0x10 or 1_000 may be somebody's name for something.
    if text[:1] in ("(", "[", "{", "'", '"') or text in ("None", "True", "False"):
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            pass
    return text


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a finite number")
