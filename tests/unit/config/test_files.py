"""Files of users: classes of settings by name, what they lack, the files beside them, and their part in addresses."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from raystill.config import files
from raystill.config.errors import UserError
from raystill.config.files import load_file, own_modules
from raystill.config.fingerprint import fingerprint
from raystill.config.overrides import override
from raystill.recipes.resolve import resolve

DATACLASS = "@dataclass(frozen=True, slots=True, kw_only=True)\n"
GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from raystill.methods.method import Distillation
from raystill.methods.rayflow import RayFlow
from {beside} import NAME

@dataclass(frozen=True, slots=True, kw_only=True)
class Mine(Distillation):
    name: ClassVar[str] = NAME
    paper: ClassVar[str] = "none"
    power: float = 2.0

    def losses(self, given, networks, batch, rng, step):
        return {}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose files are forgotten afterwards."""
    monkeypatch.setattr(files, "_loaded", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith(("tried_", "own_")):
            del sys.modules[name]


def written(place: Path, text: str = GOOD, name: str = "tried_mine.py") -> str:
    (place / "tried_beside.py").write_text("NAME = 'mine'\n")
    (place / name).write_text(text.replace("{beside}", "tried_beside"))
    return f"{place / name}:Mine"


def test_a_method_of_a_file_is_chosen_by_name_and_set_by_path(place: Path) -> None:
    run: Any = override(resolve("nano"), {"method": written(place), "method.power": 1})
    assert (type(run.method).__name__, run.method.name, run.method.power) == ("Mine", "mine", 1.0)
    assert {module.__name__ for module in own_modules()} == {"tried_mine", "tried_beside"}
    assert load_file(place / "tried_mine.py") is sys.modules["tried_mine"]  # loaded once


def address(method: str) -> str:
    """The fingerprint of a run of a method, as a new process would have it."""
    for name in [name for name in sys.modules if name.startswith("tried_")]:
        del sys.modules[name]
    files._loaded.clear()
    return fingerprint(override(resolve("nano"), {"method": method}))


def test_a_changed_line_of_the_file_or_of_one_that_it_imports_is_another_address(place: Path) -> None:
    first = address(written(place))
    (place / "tried_stranger.py").write_text("# imported by nobody\n")
    assert address(written(place)) == first
    assert address(written(place, GOOD.replace("return {}", "return dict()"))) != first
    method = written(place)
    (place / "tried_beside.py").write_text("NAME = 'mine'\nMORE = 1\n")
    assert address(method) != first


def test_a_file_that_another_one_has_imported_can_be_named(place: Path) -> None:
    method = written(place)
    (place / "tried_recipe.py").write_text(
        "from raystill.recipes import nano\nfrom tried_mine import Mine\n\ndef run():\n    return nano.run()\n"
    )
    run: Any = override(resolve(str(place / "tried_recipe.py")), {"method": method})
    assert isinstance(run.method, sys.modules["tried_recipe"].Mine)


def test_packages_beside_a_file_are_sent_along_and_this_one_is_not(place: Path) -> None:
    (place / "tried_package").mkdir()
    (place / "tried_package" / "__init__.py").write_text("")
    (place / "tried_package" / "losses.py").write_text("VALUE = 3\n")
    (place / "tried_user.py").write_text("from tried_package.losses import VALUE\nimport raystill.config\n")
    assert load_file(place / "tried_user.py").VALUE == 3
    names = {module.__name__ for module in own_modules()}
    assert names == {"tried_user", "tried_package", "tried_package.losses"}


def test_annotations_that_are_text_are_known_where_the_class_is_sent_to(place: Path) -> None:
    method = written(place, "from __future__ import annotations\n" + GOOD)
    run: Any = override(resolve("nano"), {"method": method, "method.power": 3})
    found = sys.modules.pop("tried_mine")  # as in a process that has no such module
    assert fingerprint(run.method) != fingerprint(type(run.method)())
    assert get_type_hints(type(run.method))["power"] is float
    sys.modules["tried_mine"] = found


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Mine(Distillation)", "class Mine", "Mine is no Distillation: write `class Mine.Distillation.`"),
        ("def losses", "def loses", "Mine lacks losses, which every Distillation has"),
        ("    paper: ClassVar[str]", "    papers: ClassVar[str]", "Mine lacks paper: write `paper: ClassVar"),
        (DATACLASS, "", "Mine is no dataclass: write `@dataclass"),
        ("power: float = 2.0", "power: float", "Mine has no default for power"),
        (
            "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Mine(Distillation)",
            "class Mine(RayFlow)",
            "is no dataclass",
        ),
        ("class Mine", "class Yours", r"tried_mine.py has no class 'Mine'; it has: Yours"),
    ],
)
def test_what_a_class_lacks_is_said(place: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano"), {"method": written(place, GOOD.replace(old, new))})


def test_a_file_that_is_not_there_is_refused_and_one_of_another_module_s_name_is_not_mistaken(
    place: Path,
) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent.py'"):
        override(resolve("nano"), {"method": f"{place}/absent.py:Mine"})
    for name in ("torch.py", "queue.py", "xmlrpc.py"):  # modules that are loaded, and one that is not yet
        override(resolve("nano"), {"method": written(place, name=name)})
        assert sys.modules[f"own_{name.removesuffix('.py')}"].Mine.name == "mine"
    assert importlib.import_module("xmlrpc").__file__ != str(place / "xmlrpc.py")
    with pytest.raises(UserError, match=r"expected a class of it as well: .*torch.py:CLASS"):
        override(resolve("nano"), {"method": str(place / "torch.py")})


def test_a_file_that_fails_is_tried_again(place: Path) -> None:
    path = place / "tried_failing.py"
    path.write_text("raise KeyError('x')\n")
    with pytest.raises(KeyError):
        load_file(path)
    path.write_text("VALUE = 3\n")
    assert load_file(path).VALUE == 3
