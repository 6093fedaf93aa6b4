import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.digest import canonical, canonical_json, digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Straight:
    sigma: float = 0.5
    steps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Curved:
    sigma: float = 0.5
    steps: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    path: Straight | Curved = Straight()
    folder: Path = Path("runs/one")
    note: str | None = None


def test_settings_become_plain_json_that_names_its_classes() -> None:
    assert canonical(Tree()) == {
        "kind": "Tree",
        "path": {"kind": "Straight", "sigma": 0.5, "steps": [1, 2]},
        "folder": "runs/one",
        "note": None,
    }
    assert json.loads(canonical_json(Tree())) == canonical(Tree())


def test_the_digest_is_known_and_stays() -> None:
    # An address of what lies in storage: if this value changes, caches made before are no longer found.
    assert digest(Tree()) == "92dae71e15f9dae0"
    assert digest({"b": 1, "a": [True, None, "x"]}) == "54a65415ad370228"


def test_equal_fields_of_two_classes_differ() -> None:
    assert digest(Tree(path=Straight())) != digest(Tree(path=Curved()))


def test_the_order_of_keys_does_not_matter_and_that_of_items_does() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest([1, 2]) != digest([2, 1])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}])
def test_a_number_that_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        digest(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object, Straight, lambda: 1])
def test_what_is_not_a_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="settings hold plain values"):
        digest(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(plain)
def test_plain_values_are_canonical_already(value: Any) -> None:
    assert canonical(value) == value
    assert digest(value) == digest(json.loads(canonical_json(value)))


@given(plain, plain)
def test_the_digest_is_16_hex_digits_and_tells_values_apart(one: Any, other: Any) -> None:
    assert len(digest(one)) == 16
    assert set(digest(one)) <= set("0123456789abcdef")
    assert (digest(one) == digest(other)) == (canonical_json(one) == canonical_json(other))
