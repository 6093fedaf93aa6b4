"""Addresses of format 1, as version 57a9588 computed them, from settings as they are now."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from raystill.config import legacy
from raystill.config.digest import digest
from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.config.legacy import earlier
from raystill.data.derive import Source
from raystill.data.local import LocalStore
from raystill.data.objects import Entry
from raystill.recipes.resolve import resolve

SOURCE = Source(
    LocalStore(uri="x"),
    (Entry(key="000002.tar", size=1234, etag="aa"), Entry(key="000003.tar", size=5678, etag="bb")),
)
# Of that version: the shards above, the shipped teacher's revision and two workers.
TARGETS = {"nano": "8f9c02f644f4095a", "nano:control": "c5c0c43d6cc6c2cd", "lcm_nano": "7e750feeb72ed45e"}
CHECKPOINTS = {"nano": "0cbabc9403fedcbe", "lcm_nano": "727e5017dbad8e65", "tscd_nano": "7bc772dc907207fc"}


@pytest.mark.parametrize("recipe", TARGETS)
def test_old_targets_have_the_address_that_they_had(recipe: str) -> None:
    run = resolve(recipe)
    depends_on = {"stage": "targets", "teacher": "11cc13546aa4a210", "reading": run.reading, "targets": run.targets}
    assert digest({**SOURCE.contents, **earlier(depends_on).form}) == TARGETS[recipe]


@pytest.mark.parametrize("recipe", CHECKPOINTS)
def test_old_checkpoints_have_the_address_that_they_had(recipe: str) -> None:
    then = earlier({"task": resolve(recipe).task, "workers": 2}).form
    assert digest({**SOURCE.contents, **then}) == CHECKPOINTS[recipe]


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    sigma: float = introduced(0.0)
    end: str = introduced("signal", now="teacher")
    pictures: Knob[int] = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    path: Path = introduced_group(Path)
    steps: tuple[int, ...] = introduced((1, 2))
    revision: ClassVar[int] = 1


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(legacy.FIELDS, "Path", ("sigma",))
    monkeypatch.setitem(legacy.FIELDS, "Method", ("path", "steps"))


THEN = {"kind": "Method", "path": {"kind": "Path", "sigma": 0.0}, "steps": [1, 2]}


def test_fields_that_came_later_are_left_out() -> None:
    found = earlier(Method(path=Path(end="signal", pictures=9)))
    assert (found.form, found.same) == (THEN, True)


def test_what_was_otherwise_then_is_named_with_its_path() -> None:
    found = earlier({"method": Method()})
    assert (found.form, found.settings, found.same) == ({"method": THEN}, {"method.path.end": "signal"}, False)


def test_a_raised_revision_is_named() -> None:
    class Raised(Method):
        __slots__ = ()
        revision: ClassVar[int] = 3

    Raised.__name__ = "Method"
    found = earlier(Raised(path=Path(end="signal")))
    assert (found.form, found.raised, found.same) == (THEN, ["Method (revision 3)"], False)


def test_a_new_class_was_nowhere() -> None:
    @dataclass(frozen=True)
    class Fresh:
        value: Any = introduced(1)

    assert not earlier(Fresh()).same
