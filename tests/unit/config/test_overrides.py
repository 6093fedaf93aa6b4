import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.errors import UserError
from raystill.config.fingerprint import identity, introduced, introduced_group
from raystill.config.overrides import override, parse_assignments, paths, setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    low: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    steps: tuple[int, ...] = (1, 2, 4)
    offsets: tuple[float, str] = (0.5, "left")


class Sampler(Protocol):
    def draw(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    at: float = 0.3

    def draw(self) -> float:
        return self.at


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPath:
    sigma: float = 0.1
    scale: int | float = 2
    kind: Literal["straight", "ray", 3] = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    first: int = 1
    last: int = 4
    width: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.first >= self.last:
            raise UserError(f"first {self.first} is not below last {self.last}")
        object.__setattr__(self, "width", self.last - self.first)


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    path: RayPath = RayPath()
    times: Uniform | Grid = Grid()
    window: Window = Window()
    sampler: Sampler = Fixed()
    average: Uniform | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    method: Method = Method()
    seed: int = 0
    name: str = "first"
    folder: Path = Path("runs")
    fast: bool = False
    limit: int | None = None
    label: str | int | None = None
    bits: Literal["16", "32"] = "32"
    weights: dict[str, float] = field(default_factory=dict)


def refusal(changes: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        override(Run(), changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("path", "given_value", "stored"),
    [
        ("method.path.sigma", 0.25, 0.25),
        ("method.path.sigma", 1, 1.0),
        ("method.path.scale", 3, 3),
        ("method.path.kind", "straight", "straight"),
        ("method.path.kind", 3, 3),
        ("method.times.steps", [8], (8,)),
        ("method.times.steps", (), ()),
        ("method.times.offsets", [1, "right"], (1.0, "right")),
        ("method.times", Uniform(low=0.5), Uniform(low=0.5)),
        ("method.sampler", Fixed(at=0.9), Fixed(at=0.9)),
        ("method.sampler.at", 0.9, 0.9),
        ("method.average", Uniform(), Uniform()),
        ("method.times", "Uniform", Uniform()),
        ("method.average", "Uniform", Uniform()),
        ("name", 123, "123"),
        ("folder", "elsewhere", Path("elsewhere")),
        ("limit", None, None),
        ("limit", 7, 7),
        ("label", 7, 7),
        ("label", "7", "7"),
        ("bits", 16, "16"),
        ("weights", {"loss": 2}, {"loss": 2.0}),
    ],
)
def test_a_fitting_value_is_stored_as_its_annotation_wants_it(path: str, given_value: Any, stored: Any) -> None:
    changed: Any = override(Run(), {path: given_value})
    for name in path.split("."):
        changed = getattr(changed, name)
    assert changed == stored
    assert type(changed) is type(stored)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", True),
        ("seed", 1.0),
        ("seed", "1"),
        ("fast", 1),
        ("fast", "true"),
        ("name", 1000.0),
        ("name", None),
        ("limit", 0.5),
        ("method.path.sigma", "0.1"),
        ("method.path.sigma", False),
        ("method.path.sigma", float("inf")),
        ("method.path.sigma", float("nan")),
        ("method.path.kind", "curved"),
        ("method.times.steps", 4),
        ("method.times.steps", [1, 2.5]),
        ("method.times.offsets", [1.0]),
        ("method.path", 0.1),
        ("method.path", Uniform()),
        ("method.average", 0.5),
        ("weights", {"loss": "much"}),
    ],
)
def test_a_value_that_does_not_fit_is_refused_by_name(path: str, value: Any) -> None:
    message = refusal({path: value})
    assert message.startswith(f"{path}: found {value!r}" if value is not None else f"{path}: found None")
    assert "expected" in message


def test_the_message_says_what_to_write() -> None:
    assert refusal({"method.path.sigma": "big"}) == (
        "method.path.sigma: found 'big' (str), expected float (finite); write for example --set method.path.sigma=0.5"
    )
    assert refusal({"method.path.kind": "curved"}) == (
        "method.path.kind: found 'curved' (str), expected one of 'straight', 'ray', 3; "
        "write for example --set 'method.path.kind=\"straight\"'"
    )
    assert refusal({"method.times.steps": 4}) == (
        "method.times.steps: found 4 (int), expected a list of int; write for example --set 'method.times.steps=[8, 8]'"
    )
    assert refusal({"limit": 0.5}) == "limit: found 0.5 (float), expected int or null; write for example --set limit=8"


def test_a_named_group_is_chosen_before_its_fields_are_set() -> None:
    changed = override(Run(), {"method.times.low": 0.25, "method.times": "Uniform", "seed": 3})
    assert changed.method.times == Uniform(low=0.25)
    assert changed.seed == 3
    assert "method.times.low" in refusal({"method.times.low": 0.25})


def test_a_group_of_an_unknown_name_lists_those_that_fit() -> None:
    assert refusal({"method.times": "Unifrom"}) == (
        "method.times: found 'Unifrom' (str), expected Uniform or Grid, a group of settings (did you mean "
        "Uniform?); "
        "for Grid set method.times.steps, method.times.offsets"
    )


def test_a_group_of_settings_is_not_replaced_by_a_plain_value() -> None:
    assert refusal({"method.path": 0.1}) == (
        "method.path: found 0.1 (float), expected RayPath, a group of settings; "
        "for RayPath set method.path.sigma, method.path.scale, method.path.kind"
    )


@pytest.mark.parametrize(
    ("path", "suggestion"),
    [
        ("method.path.sigm", "method.path.sigma"),
        ("methods.path.sigma", "method.path.sigma"),
        ("sigma", "method.path.sigma"),
        ("path.steps", "method.times.steps"),
        ("sead", "seed"),
    ],
)
def test_an_unknown_path_names_the_nearest(path: str, suggestion: str) -> None:
    assert refusal({path: 1}).startswith(f"there is no setting {path!r}; did you mean {suggestion}")


def test_an_unknown_path_far_from_all_lists_its_neighbours() -> None:
    assert refusal({"method.path.zzz": 1}).endswith(
        "expected one of method.path.sigma, method.path.scale, method.path.kind"
    )
    assert "expected one of method, seed, name" in refusal({"qqq.zzz": 1})


def test_a_field_below_a_plain_value_is_explained() -> None:
    message = refusal({"method.average.low": 0.5})
    assert message.endswith("method.average is None, which has no fields")


def test_a_derived_field_cannot_be_set() -> None:
    assert "there is no setting 'method.window.width'" in refusal({"method.window.width": 9})
    assert override(Run(), {"method.window.last": 10}).method.window.width == 9


def test_changes_are_checked_together_and_not_one_by_one() -> None:
    window = override(Run(), {"method.window.first": 5, "method.window.last": 9}).method.window
    assert (window.first, window.last) == (5, 9)
    assert "first 5 is not below last 4" in refusal({"method.window.first": 5})


def test_a_group_is_set_as_a_whole_or_in_part() -> None:
    message = refusal({"method.times": Grid(), "method.times.steps": [1]})
    assert message == "method.times is set as a whole and in part (method.times.steps); keep one of them"


def test_what_is_not_changed_stays_the_very_same() -> None:
    run = Run()
    changed = override(run, {"method.path.sigma": 0.2})
    assert changed.method.times is run.method.times
    assert run.method.path.sigma == 0.1
    assert override(run, {}) is run


def test_paths_lists_the_leaves_in_order() -> None:
    listed = paths(Run())
    assert list(listed)[:4] == ["method.path.sigma", "method.path.scale", "method.path.kind", "method.times.steps"]
    assert listed["method.times.steps"] == (1, 2, 4)
    assert listed["method.average"] is None
    assert "method.window.width" not in listed
    assert "method" not in listed


def test_assignments_are_read_as_values() -> None:
    texts = ["a.b=0.1", "c=1e-3", "d=12", "e=true", "f=null", "g=[1, 2]", "h=(1, 2)", "i='7'", 'j="7"', "k = some text"]
    assert parse_assignments(texts) == {
        "a.b": 0.1, "c": 1e-3, "d": 12, "e": True, "f": None, "g": [1, 2], "h": (1, 2), "i": "7", "j": "7",
        "k": "some text",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["a=b=c", "0x10", "1_000", "007", "NaN", "s3://bucket/x", "[1, 2", "", "model:v=1"])
def test_what_is_no_value_stays_the_text_it_is(text: str) -> None:
    assert parse_assignments([f"name={text}"]) == {"name": text}


@pytest.mark.parametrize("text", ["sigma", "=3", "", " = 3"])
def test_an_assignment_without_its_path_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"expected path=value, for example method\.path\.sigma=0\.1"):
        parse_assignments([text])


def test_a_path_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match=re.escape("seed is set twice, to 1 (int) and to '2'; keep one of them")):
        parse_assignments(["seed=1", "seed=2"])


def test_a_number_where_text_is_wanted_keeps_its_spelling_or_is_refused() -> None:
    assert override(Run(), parse_assignments(["name=0042"])).name == "0042"
    assert override(Run(), parse_assignments(["name=42"])).name == "42"
    assert override(Run(), parse_assignments(['name="4e2"'])).name == "4e2"
    with pytest.raises(UserError, match=r"^name: found 400\.0 \(float\), expected str"):
        override(Run(), parse_assignments(["name=4e2"]))


finite = st.floats(allow_nan=False, allow_infinity=False)
runs = st.builds(
    Run,
    method=st.builds(
        Method,
        path=st.builds(RayPath, sigma=finite, scale=st.integers() | finite, kind=st.sampled_from(["ray", 3])),
        times=st.builds(Grid, steps=st.lists(st.integers()).map(tuple)) | st.builds(Uniform, low=finite),
    ),
    seed=st.integers(),
    name=st.text(),
    fast=st.booleans(),
    limit=st.none() | st.integers(),
    label=st.none() | st.integers() | st.text(),
)


@given(runs)
def test_setting_every_path_to_its_value_changes_nothing(run: Run) -> None:
    assert override(run, paths(run)) == run


def test_a_setting_is_what_override_takes() -> None:
    assert setting(Run(), "method.path.sigma") == 0.1
    assert setting(Run(), "method.times") == "Grid"
    assert setting(Run(), "method.average") is None
    assert override(Run(), {"method.times": setting(Run(), "method.times")}) == Run()
    with pytest.raises(UserError, match=r"there is no setting 'method\.path\.sgma'; did you mean method\.path\.sigma"):
        setting(Run(), "method.path.sgma")


@given(finite, st.integers(), st.text(alphabet=st.characters(codec="ascii", exclude_categories=["C", "Z"])))
def test_what_is_written_is_what_is_read(sigma: float, seed: int, name: str) -> None:
    changes = parse_assignments([f"method.path.sigma={sigma!r}", f"seed={seed}", f"name={name!r}"])
    run = override(Run(), changes)
    assert (run.method.path.sigma, run.seed, run.name) == (sigma, seed, name)
    assert type(run.method.path.sigma) is float


@given(st.integers() | finite | st.text() | st.booleans() | st.none() | st.lists(st.integers()))
def test_a_field_never_holds_another_type(value: Any) -> None:
    for path, kind in {"seed": int, "name": str, "fast": bool, "folder": Path}.items():
        try:
            stored = paths(override(Run(), {path: value}))[path]
        except UserError:
            continue
        assert isinstance(stored, kind)
        assert type(stored) is not bool or kind is bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    former: ClassVar[str] = "Path"

    spread: float = introduced(0.0, former="sigma")


@dataclass(frozen=True, slots=True, kw_only=True)
class Anew:
    ray: Ray = introduced_group(Ray)
    other: Ray | Method = introduced_group(Ray)


def test_former_names_work_and_say_the_new_ones(caplog: pytest.LogCaptureFixture) -> None:
    changed = override(Anew(), {"ray.sigma": 0.5, "other": "Path", "other.sigma": 0.25})
    assert changed == Anew(ray=Ray(spread=0.5), other=Ray(spread=0.25))
    assert set(caplog.messages) == {
        f"{old} is called {new} now; the old name works for one more release"
        for old, new in (("ray.sigma", "ray.spread"), ("Path", "Ray"), ("other.sigma", "other.spread"))
    }
    with pytest.raises(UserError, match=r"ray\.spread is set twice, once by its former name ray\.sigma"):
        override(Anew(), {"ray.spread": 0.1, "ray.sigma": 0.2})


def test_renamed_settings_keep_their_address() -> None:
    assert identity(Anew(ray=Ray(spread=0.5))) == {"kind": "Anew", "ray": {"kind": "Path", "sigma": 0.5}}
