"""Copies of raystill's modules inside a registered model whose scheduler is raystill's own.

They are put into a package named after their digest, so that they clash neither with the raystill that is installed
where the model is loaded nor with the copies in other models.
"""

import ast
import hashlib
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def needed(module: str) -> dict[str, str]:
    """Source texts by dotted name of a raystill module and of all those that it imports, directly or through others."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()
            waiting += _imports(found[name])
    return dict(sorted(found.items()))


def pack(module: str, directory: Path) -> tuple[Path, str]:
    """Write a package with a module and the raystill modules that it imports below `directory`; returns the package's
    folder and the name that the module has in it.
    """
    texts = needed(module)
    package = f"raystill_{hashlib.sha256(''.join(texts.values()).encode()).hexdigest()[:12]}"
    for name, text in texts.items():
        path = directory.joinpath(package, *name.split(".")[1:]).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(re.sub(r"^from raystill\.", f"from {package}.", text, flags=re.MULTILINE))
    for folder in {directory / package, *(p.parent for p in (directory / package).rglob("*.py"))}:
        (folder / "__init__.py").touch()  # empty: raystill's own __init__ files set variables that libraries read
    return directory / package, module.replace("raystill", package, 1)


def _imports(text: str) -> list[str]:
    """Modules of raystill that a module imports; they are all imported as `from raystill.x.y import z`."""
    lines = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.ImportFrom)]
    return [line.module for line in lines if line.module is not None and line.module.startswith("raystill.")]
