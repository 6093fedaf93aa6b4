"""How `--recipe` becomes settings: a shipped recipe by name, or a function in anybody's file."""

import difflib
import importlib
import json
import pkgutil
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType
from typing import Any

from raystill.config.errors import UserError
from raystill.config.files import load_file
from raystill.config.overrides import former_paths, paths
from raystill.recipes import nano_methods
from raystill.run.settings import Run

TUNED = (
    "method.",
    "optimizer.",
    "sampling.",
    "training.steps",
    "evaluation.student_steps",
)  # what a recipe chooses for a method
NAMED = ("name", "model")  # of the run and of its adapter in the registry
SHIPPED = ("raystill.recipes", "raystill_studies.recipes")  # packages; the second one is the project's own research


def resolve(recipe: str) -> Any:
    """Call the recipe `NAME[:FUNCTION]` of a package of `SHIPPED`, or `FILE.py[:FUNCTION]`; FUNCTION is `run` unless
    named.
    `METHOD_nano` is short for `nano_methods:METHOD_nano`.
    """
    place, _, function = recipe.partition(":")
    if not function and place in _peers():
        place, function = "nano_methods", place
    module = load_file(Path(place)) if place.endswith(".py") else _shipped(place)
    make: Callable[[], Any] | None = vars(module).get(function or "run")
    if not callable(make):
        found = ", ".join(sorted(n for n, v in vars(module).items() if _makes(n, v, module)))
        raise UserError(f"recipe {place!r} has no function {function or 'run'!r}; it has: {found}")
    return make()


def advice(recipe: Run, run: Run, typed: Collection[str]) -> str:
    """A line on the settings in which a run of another method than its recipe's differs from the method's own recipe,
    but for those that were `typed`, or on what it is called by where the method has no recipe; empty where there is
    nothing to say.
    """
    method, former = type(run.method), dict(former_paths(run))
    if method is type(recipe.method):
        return ""
    given = {former.get(path, path) for path in typed}
    peers = {name: vars(nano_methods)[name]() for name in _peers()}
    same = [name for name, peer in peers.items() if type(peer.method) is method]
    own = min(same, key=lambda name: name != f"{run.method.name}_nano", default=None)
    if own is None:
        told = " ".join(f"--set {name}=..." for name in NAMED if name not in given)
        kept = f"{method.__name__} has no recipe, and this run is called as those of {type(recipe.method).__name__} are"
        return f"{kept}: {told}" if told else ""
    theirs, ours = paths(peers[own]), paths(run)
    asked = [name for name in theirs if (name.startswith(TUNED) or name in NAMED) and name not in given]
    names = [name for name in asked if ours.get(name) != theirs[name]]
    kind = type(peers[own].targets.estimator).__name__
    if type(run.targets.estimator).__name__ != kind and "targets.estimator" not in given:
        names.append("targets.estimator")
        theirs["targets.estimator"] = kind
    if not names:
        return ""
    told = " ".join(f"--set {shlex.quote(f'{name}={_written(theirs[name])}')}" for name in names)
    return f"{method.__name__} has a recipe of its own, --recipe {own}; this run differs from it, which has {told}"


def _written(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def _makes(name: str, value: Any, module: ModuleType) -> bool:
    """Whether a name in a module is a recipe that the module itself defines."""
    return callable(value) and value.__module__ == module.__name__ and not name.startswith("_")


def _shipped(name: str) -> ModuleType:
    places = {module: package for package in SHIPPED for module in _modules(package)}
    if name not in places:
        shipped = [*sorted(places), *_peers()]
        near = " or ".join(difflib.get_close_matches(name, shipped, n=2))
        asked = f"did you mean {near}? " if near else ""
        raise UserError(
            f"there is no recipe {name!r}; {asked}shipped are: {', '.join(shipped)}. "
            "A file of your own: --recipe my_recipe.py:run"
        )
    return importlib.import_module(f"{places[name]}.{name}")


def _modules(package: str) -> list[str]:
    """Names of a package's recipes; none where it is not installed."""
    try:
        path = importlib.import_module(package).__path__
    except ModuleNotFoundError:
        return []
    return [m.name for m in pkgutil.iter_modules(path) if m.name != "resolve" and not m.name.startswith("_")]


def _peers() -> list[str]:
    """Recipes that are found without their module's name."""
    return sorted(name for name, value in vars(nano_methods).items() if _makes(name, value, nano_methods))
