"""Python files of users, for recipes and classes of settings: loaded once, with the files beside them in reach."""

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from raystill.config.errors import UserError

CLASS = re.compile(r"(?P<file>.+\.py):(?P<name>\w+)")  # how a class of a file is named: my_method.py:MyMethod
SOURCE = "source_digest"  # attribute of a file's classes: a digest of the text, by which addresses know what they do
_loaded: dict[Path, ModuleType] = {}


def load_file(path: Path) -> ModuleType:
    """Load a file as a module of its own name, which may import the files beside it. UserError where there is no such
    file, or where its name is that of another module.
    """
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}")
    path = path.resolve()
    if path in _loaded:
        return _loaded[path]
    taken = path.stem in sys.modules and sys.modules[path.stem] not in _loaded.values()
    if taken or path.stem in sys.stdlib_module_names:
        raise UserError(f"{path.name} has the name of another module, {path.stem}; call the file otherwise")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    sys.modules[path.stem] = module  # dataclasses and annotations look their modules up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]  # a mended file is loaded anew
        raise
    _loaded[path] = module
    for one in own_modules():
        _sign(one)
    return module


def own_modules() -> list[ModuleType]:
    """The files that were loaded, and those beside them that they have imported; no other process can import them."""
    folders = {path.parent for path in _loaded}
    named = [(module, getattr(module, "__file__", None)) for module in [*sys.modules.values()]]
    return [module for module, file in named if file is not None and Path(file).parent in folders]


def load_class(text: str) -> type | None:
    """The class that `FILE.py:CLASS` names; None for any other text. UserError where the file has no such class."""
    found = CLASS.fullmatch(text)
    if found is None:
        return None
    module = load_file(Path(found["file"]))
    kind = vars(module).get(found["name"])
    if not isinstance(kind, type):
        own = sorted(n for n, v in vars(module).items() if isinstance(v, type) and v.__module__ == module.__name__)
        raise UserError(f"{found['file']} has no class {found['name']!r}; it has: {', '.join(own) or 'none'}")
    return kind


def _sign(module: ModuleType) -> None:
    """Note on each class of a file what its text is."""
    assert module.__file__ is not None
    digest = hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()[:16]
    for kind in vars(module).values():
        if isinstance(kind, type) and kind.__module__ == module.__name__:
            setattr(kind, SOURCE, digest)
