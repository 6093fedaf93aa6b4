"""Addresses: what they depend on, and what not."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, make_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args, get_origin, get_type_hints

import pytest

from raystill.config.fingerprint import INTRODUCED, Knob, fingerprint, identity, introduced, introduced_group, knobs
from raystill.config.overrides import override
from raystill.flow.starts import StartLaw
from raystill.recipes.resolve import resolve
from raystill.run.samples import Solver
from raystill.run.settings import Pretraining, Run
from raystill.search.settings import Search
from raystill.training.distillation import DistillTask
from raystill.training.pretraining import AutoencoderTask, DenoiserTask
from raystill_studies.comparison import Comparison
from raystill_studies.study import Study

ROOTS = (Run, Pretraining, Search, Study, Comparison, DistillTask, AutoencoderTask, DenoiserTask, Solver, StartLaw)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ray:
    sigma: float = introduced(0.0)
    end: str = introduced("signal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    base: Ray = introduced_group(Ray)
    bins: int = introduced(10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    steps: int = introduced(1000)
    rate: float = introduced(1e-3)
    path: Ray | Law = introduced_group(Ray)
    law: Law = introduced_group(partial(Law, base=Ray(sigma=0.5), bins=20))
    notes: dict[str, float] = introduced_group(dict)
    where: Knob[str]
    log_every: Knob[int] = 10


TREE = Tree(where="here")


def changed(kind: type, name: str, **fields: Any) -> Any:
    """A dataclass as it is in another version: these fields declared anew, under the old one's name."""
    old = {f.name: (f.type, f) for f in dataclasses.fields(kind)}
    every = {**old, **{field: (Any, declared) for field, declared in fields.items()}}
    return make_dataclass(name, [(n, t, f) for n, (t, f) in every.items()], frozen=True, slots=True, kw_only=True)


def test_only_what_is_not_as_it_was_introduced_counts() -> None:
    assert identity(TREE) == {"kind": "Tree"}
    moved = Tree(where="there", steps=5, path=Ray(sigma=0.1), log_every=1, notes={"a": 2.0})
    assert identity(moved) == {"kind": "Tree", "steps": 5, "path": {"kind": "Ray", "sigma": 0.1}, "notes": {"a": 2}}
    assert identity(Tree(where="x", path=Law())) == {"kind": "Tree", "path": {"kind": "Law"}}
    assert identity(Tree(where="x", law=Law()))["law"] == {"kind": "Law"}
    assert identity(Tree(where="x", law=Law(base=Ray(sigma=0.5), bins=20))) == {"kind": "Tree"}


def test_a_new_field_with_a_default_changes_no_fingerprint() -> None:
    newer = changed(Tree, "Tree", colour=introduced("red"), shape=introduced_group(Ray), every=introduced(None))
    for settings in ({}, {"steps": 5}, {"path": Law(bins=3)}):
        assert fingerprint(newer(where="here", **settings)) == fingerprint(Tree(where="here", **settings))
    assert fingerprint(newer(where="here", colour="blue")) != fingerprint(TREE)


def test_a_changed_default_changes_the_fingerprints_that_rely_on_it() -> None:
    newer = changed(Tree, "Tree", steps=introduced(1000, now=2000))
    assert newer(where="here").steps == 2000
    assert fingerprint(newer(where="here")) != fingerprint(TREE)
    assert fingerprint(newer(where="here")) == fingerprint(Tree(where="here", steps=2000))
    assert fingerprint(newer(where="here", steps=1000)) == fingerprint(TREE)


def test_a_changed_default_in_a_group_is_that_of_whatever_holds_it() -> None:
    ray = changed(Ray, "Ray", end=introduced("signal", now="teacher"))
    newer = changed(Tree, "Tree", path=introduced_group(ray))
    assert identity(newer(where="here")) == {"kind": "Tree", "path": {"kind": "Ray", "end": "teacher"}}
    assert fingerprint(newer(where="here", path=ray(end="signal"))) == fingerprint(TREE)
    law = changed(Law, "Law", base=introduced_group(ray))
    relies = changed(Tree, "Tree", law=introduced_group(partial(law, base=ray(sigma=0.5), bins=20)))
    expected = {"kind": "Law", "base": {"kind": "Ray", "sigma": 0.5, "end": "teacher"}, "bins": 20}
    assert identity(relies(where="here")) == {"kind": "Tree", "law": expected}
    assert fingerprint(relies(where="here", law=law(base=ray(sigma=0.5, end="signal"), bins=20))) == fingerprint(TREE)


def test_a_group_of_another_default_counts() -> None:
    newer = changed(Tree, "Tree", path=introduced_group(Ray, now=Law))
    assert identity(newer(where="here")) == {"kind": "Tree", "path": {"kind": "Law"}}
    assert fingerprint(newer(where="here", path=Ray())) == fingerprint(TREE)


def test_a_revision_counts_unless_it_is_the_first() -> None:
    class First(Ray):
        __slots__ = ()
        revision: ClassVar[int] = 1

    class Second(Ray):
        __slots__ = ()
        revision: ClassVar[int] = 2

    First.__name__ = Second.__name__ = "Ray"
    assert fingerprint(Tree(where="here", path=First())) == fingerprint(TREE)
    assert identity(Tree(where="here", path=Second())) == {"kind": "Tree", "path": {"kind": "Ray", "revision": 2}}
    field = changed(Ray, "Ray", revision=introduced(1, now=2))
    assert identity(field()) == {"kind": "Ray", "revision": 2}
    assert identity(field(revision=1)) == {"kind": "Ray"}


def test_speed_reports_and_places_never_count() -> None:
    assert fingerprint(Tree(where="elsewhere", log_every=1)) == fingerprint(TREE)
    assert knobs(Tree) == {"where", "log_every"}


def test_whole_numbers_are_equal_however_they_are_written() -> None:
    assert fingerprint(Tree(where="x", rate=3)) == fingerprint(Tree(where="x", rate=3.0))
    assert fingerprint({"a": True}) != fingerprint({"a": 1})


def test_an_address_is_known_and_stays() -> None:
    # Addresses of what lies in storage: if one of these changes, what was made before is not found any more.
    assert fingerprint(TREE) == "418729d5728e846a"
    assert fingerprint({"b": 1, "a": [True, None, "x"], "p": Path("a/b")}) == "72cff023196214ba"
    assert identity(identity(TREE)) == identity(TREE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"deep": [float("-inf")]}])
def test_a_number_that_is_not_finite_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="Out of range float values"):
        fingerprint(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object, Ray, lambda: 1])
def test_what_is_not_a_plain_value_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match="settings hold plain values"):
        fingerprint(value)


def groups(hint: Any) -> Iterator[type]:
    """Dataclasses in an annotation."""
    for member in (hint, get_origin(hint), *get_args(hint)):
        if isinstance(member, type) and dataclasses.is_dataclass(member):
            yield member
    for member in get_args(hint):
        if get_args(member):
            yield from groups(member)


def reachable() -> list[type]:
    """Every dataclass of which an address can depend."""
    found: dict[type, None] = {}
    waiting: list[type] = [*ROOTS]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found[kind] = None
            hints = get_type_hints(kind)
            counting = [f.name for f in dataclasses.fields(kind) if f.name not in knobs(kind)]
            waiting += [group for name in counting for group in groups(hints[name])]
    return [*found]


def undeclared(kind: type) -> list[str]:
    """Names of a dataclass's fields that have a default but are neither `introduced` nor a `Knob`."""
    absent = dataclasses.MISSING
    return [
        field.name
        for field in dataclasses.fields(kind)
        if not (field.default is absent and field.default_factory is absent)
        and INTRODUCED not in field.metadata
        and field.name not in knobs(kind)
    ]


def test_every_default_says_what_becomes_of_it_in_addresses() -> None:
    every = reachable()
    assert len(every) > 50
    assert not [
        f"{kind.__module__}.{kind.__name__}.{name} has a plain default: write `= introduced(VALUE)` for a setting that "
        f"changes numbers (introduced_group(CLASS) for a group of settings), or `{name}: Knob[TYPE] = VALUE` for one "
        "that changes speed, reports or names only (raystill.config.fingerprint)"
        for kind in every
        for name in undeclared(kind)
    ]


# The frozen addresses of shipped recipes. One changes where a default or a revision was changed on purpose: then
# what was made with the old one is computed anew, which the commit should say.
FROZEN = {"nano": "84a0a3289b432c96", "lcm_nano": "2ac3dca9a7e3a447", "nano:teacher": "38eff21bdedc56c2"}


@pytest.mark.parametrize("recipe", FROZEN)
def test_the_addresses_of_recipes_are_known_and_stay(recipe: str) -> None:
    assert fingerprint(resolve(recipe)) == FROZEN[recipe]


COSMETIC = {
    "training.log_every": 3, "training.checkpoint_every": 7, "training.picture_every": 0, "targets.batch_size": 8,
    "evaluation.captions": ("sun",), "evaluation.batch_size": 8, "reading.max_bad_fraction": 0.5, "name": "x",
    "cluster.zero_stage": 3, "cluster.actors": 1, "cluster.worker.cpus": 0.5, "work": "elsewhere", "experiment": "x",
    "model": "x", "store": "environment", "port": 9000, "artifacts": None, "shards": "elsewhere",
}  # fmt: skip


@pytest.mark.parametrize("path", COSMETIC)
def test_what_changes_no_number_changes_no_address(path: str) -> None:
    run = resolve("nano")
    assert fingerprint(override(run, {path: COSMETIC[path]})) == fingerprint(run)


def test_what_only_a_report_depends_on_changes_no_address() -> None:
    search, study, comparison = (resolve(name) for name in ("nano_sweep", "rayflow_study", "methods"))
    assert fingerprint(replace(search, output="x", name="x")) == fingerprint(search)
    assert fingerprint(replace(study, output="x")) == fingerprint(study)
    assert fingerprint(replace(comparison, output="x")) == fingerprint(comparison)
    assert fingerprint(replace(search, trials=99)) != fingerprint(search)


@pytest.mark.parametrize(
    ("path", "value"),
    [("training.steps", 101), ("training.seed", 1), ("method.path.sigma", 0.1), ("targets.seed", 1), ("method", "LCM"),
     ("evaluation.guidance", 2.0), ("sampling.eta", 0.5), ("weights", "Full"), ("reading.picture_size", 64)],
)  # fmt: skip
def test_what_changes_numbers_changes_the_address(path: str, value: Any) -> None:
    run = resolve("nano")
    assert fingerprint(override(run, {path: value})) != fingerprint(run)
