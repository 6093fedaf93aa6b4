"""How `--recipe` becomes settings: a shipped recipe by name, or a function in anybody's file."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from raystill.config.errors import UserError
from raystill.config.files import load_file
from raystill.recipes import nano_methods

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


def _makes(name: str, value: Any, module: ModuleType) -> bool:
    """Whether a name in a module is a recipe that the module itself defines."""
    return callable(value) and value.__module__ == module.__name__ and not name.startswith("_")


def _shipped(name: str) -> ModuleType:
    places = {module: package for package in SHIPPED for module in _modules(package)}
    if name not in places:
        raise UserError(
            f"there is no recipe {name!r}; shipped are: {', '.join([*sorted(places), *_peers()])}. "
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
