"""Files of users: classes of settings by name, what they lack, the files beside them, and their part in addresses."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raystill.config import files
from raystill.config.errors import UserError
from raystill.config.files import load_file, own_modules
from raystill.config.fingerprint import fingerprint
from raystill.config.overrides import override
from raystill.recipes.resolve import resolve

GOOD = """
from dataclasses import dataclass
from typing import ClassVar
from raystill.methods.method import Distillation
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
        if name.startswith("tried_"):
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


def test_a_changed_line_of_the_file_is_another_address(place: Path) -> None:
    first = fingerprint(override(resolve("nano"), {"method": written(place)}))
    same = fingerprint(override(resolve("nano"), {"method": written(place, name="tried_again.py")}))
    changed = written(place, GOOD.replace("return {}", "return dict()"), "tried_changed.py")
    assert fingerprint(override(resolve("nano"), {"method": changed})) != first == same


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Mine(Distillation)", "class Mine", "Mine is no Distillation: write `class Mine.Distillation.`"),
        ("def losses", "def loses", "Mine lacks losses, which every Distillation has"),
        ("    paper: ClassVar[str]", "    papers: ClassVar[str]", "Mine lacks paper: write `paper: ClassVar"),
        ("@dataclass(frozen=True, slots=True, kw_only=True)\n", "", "Mine is no dataclass: write `@dataclass"),
        ("power: float = 2.0", "power: float", "Mine has no default for power"),
        ("class Mine", "class Yours", r"tried_mine.py has no class 'Mine'; it has: Yours"),
    ],
)
def test_what_a_class_lacks_is_said(place: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(resolve("nano"), {"method": written(place, GOOD.replace(old, new))})


def test_a_file_that_is_not_there_or_is_called_as_another_module_is_refused(place: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent.py'"):
        override(resolve("nano"), {"method": f"{place}/absent.py:Mine"})
    with pytest.raises(UserError, match=r"torch.py has the name of another module, torch; call the file otherwise"):
        override(resolve("nano"), {"method": written(place, name="torch.py")})


def test_a_file_that_fails_is_tried_again(place: Path) -> None:
    path = place / "tried_failing.py"
    path.write_text("raise KeyError('x')\n")
    with pytest.raises(KeyError):
        load_file(path)
    path.write_text("VALUE = 3\n")
    assert load_file(path).VALUE == 3
