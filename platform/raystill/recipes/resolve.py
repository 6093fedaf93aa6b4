"""From `--recipe` to settings: a shipped recipe by name, or a function in anybody's file."""

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from raystill import recipes
from raystill.config.errors import UserError
from raystill.recipes import nano_methods


def resolve(recipe: str) -> Any:
    """Call the recipe `NAME[:FUNCTION]` of this package, or `FILE.py[:FUNCTION]`; FUNCTION is `run` unless named.
    `METHOD_nano` is short for `nano_methods:METHOD_nano`.
    """
    place, _, function = recipe.partition(":")
    if not function and place in _peers():
        place, function = "nano_methods", place
    module = _from_file(Path(place)) if place.endswith(".py") else _shipped(place)
    make: Callable[[], Any] | None = vars(module).get(function or "run")
    if not callable(make):
        found = ", ".join(sorted(n for n, v in vars(module).items() if _makes(n, v, module)))
        raise UserError(f"recipe {place!r} has no function {function or 'run'!r}; it has: {found}")
    return make()


def _makes(name: str, value: Any, module: ModuleType) -> bool:
    """Whether something in a module is a recipe of its own."""
    return callable(value) and value.__module__ == module.__name__ and not name.startswith("_")


def _shipped(name: str) -> ModuleType:
    names = sorted(
        m.name for m in pkgutil.iter_modules(recipes.__path__) if m.name != "resolve" and not m.name.startswith("_")
    )
    if name not in names:
        raise UserError(
            f"there is no recipe {name!r}; shipped are: {', '.join([*names, *_peers()])}. "
            "A file of your own: --recipe my_recipe.py:run"
        )
    return importlib.import_module(f"{recipes.__name__}.{name}")


def _peers() -> list[str]:
    """Recipes that are found without their module's name."""
    return sorted(name for name, value in vars(nano_methods).items() if _makes(name, value, nano_methods))


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"there is no recipe file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
