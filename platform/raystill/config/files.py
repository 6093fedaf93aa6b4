"""Python files of users, for recipes and classes of settings: loaded once, with the files beside them in reach."""

import ast
import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from raystill.config.errors import UserError
from raystill.config.fingerprint import SOURCE

CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")  # how a class of a file is named: my_method.py:MyMethod
OURS = {"raystill", "raystill_studies"}
_loaded: dict[Path, ModuleType] = {}


def load_file(path: Path) -> ModuleType:
    """Load a file as a module of its own name, or of `own_` and its name where that is another module's; it may import
    what lies beside it. UserError where there is no such file.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    if path in _loaded:
        return _loaded[path]
    name = path.stem if _free(path) else f"own_{path.stem}"
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = sys.modules.get(name)
    if _file_of(module) != path:  # else a file that was loaded has imported it
        module = _executed(name, path)
    assert module is not None
    _loaded[path] = module
    for one in own_modules():
        for kind in _classes(one):
            # Where the class is sent to, no module has the names that annotations are written with.
            hints = get_type_hints(kind, include_extras=True)
            kind.__annotations__ = {n: hints[n] for n in vars(kind).get("__annotations__", {})}
    return module


def own_modules() -> list[ModuleType]:
    """The files that were loaded, and the modules below their folders that they have imported: no other process can
    import them.
    """
    folders = {path.parent for path in _loaded}
    return [
        module
        for name, module in [*sys.modules.items()]
        if (file := _file_of(module)) is not None
        and not folders.isdisjoint(file.parents)
        and "site-packages" not in file.parts
        and name.partition(".")[0] not in OURS
    ]


def load_class(text: str) -> type | None:
    """The class that `FILE.py:CLASS` names; None for any other text. Its addresses count the text of its file and of
    what that imports from beside it. UserError where the file has no such class.
    """
    found = CLASS.fullmatch(text)
    if found is None:
        if text.endswith(".py"):
            raise UserError(f"found {text!r}, expected a class of it as well: {text}:CLASS")
        return None
    module = load_file(Path(found["file"]))
    kind = vars(module).get(found["name"])
    if not isinstance(kind, type):
        own = ", ".join(sorted(one.__name__ for one in _classes(module)))
        raise UserError(f"{found['file']} has no class {found['name']!r}; it has: {own or 'none'}")
    every = _reached(module)
    digest = _digest(every)
    for other in (kind for one in every for kind in _classes(one)):
        setattr(other, SOURCE, digest)
    return kind


def _free(path: Path) -> bool:
    """Whether a file's name is no other module's."""
    if path.stem in sys.modules:
        known = sys.modules[path.stem]
        return _file_of(known) == path or known in _loaded.values()
    spec = importlib.util.find_spec(path.stem)
    return spec is None or Path(spec.origin or "").resolve() == path


def _executed(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]  # a mended file is loaded anew
        raise
    return module


def _file_of(module: Any) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).resolve() if isinstance(file, str) else None


def _classes(module: ModuleType) -> list[type]:
    """The classes that a module defines."""
    return [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]


def _reached(module: ModuleType) -> list[ModuleType]:
    """A user's module, and those of the user's that it imports, directly or through others."""
    own = {one.__name__: one for one in own_modules()}
    found: dict[str, ModuleType] = {}
    waiting = [module.__name__]
    while waiting:
        name = waiting.pop()
        if name in own and name not in found:
            found[name] = own[name]
            waiting += _imports(own[name])
    return [found[name] for name in sorted(found)]


def _imports(module: ModuleType) -> list[str]:
    """Names of all modules that a module's text imports, or imports something from."""
    found: list[str] = []
    for node in ast.walk(ast.parse(_text(module))):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), module.__package__)
            found += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return found


def _text(module: ModuleType) -> bytes:
    file = _file_of(module)
    assert file is not None
    return file.read_bytes()


def _digest(modules: list[ModuleType]) -> str:
    return hashlib.sha256(b"".join(map(_text, modules))).hexdigest()[:16]
