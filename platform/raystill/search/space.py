"""Search spaces: which settings a sweep may change, to what, and where a choice depends on another one."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Protocol, runtime_checkable

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint, introduced, introduced_group
from raystill.config.overrides import override
from raystill.models.hub import teacher_at
from raystill.models.pipeline import teacher_facts
from raystill.run.settings import Run
from raystill.run.validate import validate

SEED = "training.seed"
# Settings that trials have in common; where they run and what they are called is not searched either.
SHARED = (
    "shards", "reading", "targets", "teacher", "evaluation", "cluster", "store", "port", "sample", "work", "name",
    "model", "experiment", "artifacts", SEED, "training.steps",
)  # fmt: skip


@runtime_checkable  # so that tests can check annotations
class Suggests(Protocol):
    """The methods of an Optuna trial that a search space calls."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Choose one of several values."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Choose a number of an interval."""

    def suggest_int(self, name: str, low: int, high: int, *, log: bool) -> int:
        """Choose a whole number of an interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A domain of the search space: one of several values of a setting."""

    path: str
    values: tuple[Any, ...]
    # path of another choice -> its values with which this setting is searched
    when: Mapping[str, tuple[Any, ...]] = introduced_group(dict)

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All values of the choice."""
        return self.values

    def holds(self, value: Any) -> bool:
        """Whether the domain contains a value."""
        return value in self.values

    def suggested(self, trial: Suggests) -> Any:
        """Return the value that Optuna suggests for a trial."""
        return trial.suggest_categorical(self.path, list(self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """A domain of the search space: a number of an interval, both ends included; a whole number where both ends are."""

    path: str
    low: int | float
    high: int | float
    log: bool = introduced(False)
    when: Mapping[str, tuple[Any, ...]] = introduced_group(dict)

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise UserError(f"the range of {self.path} is {self.low} to {self.high}; write a lower and a higher number")

    @property
    def extremes(self) -> tuple[Any, ...]:
        """Both ends of the interval."""
        return (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Whether the domain contains a value."""
        return isinstance(value, int | float) and bool(self.low <= value <= self.high)

    def suggested(self, trial: Suggests) -> Any:
        """Return the value that Optuna suggests for a trial."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            return trial.suggest_int(self.path, self.low, self.high, log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, log=self.log)


Space = tuple[Choice | Range, ...]


@dataclass(slots=True)
class ConditionalSpace:
    """The function that draws the settings of one trial for Optuna, in the order of the space. Settings whose training
    was drawn before get another seed than the run's: their trial is a measurement of its own, with checkpoints of its
    own.
    """

    space: Space
    base: Run
    drawn: Counter[str] = field(default_factory=Counter)  # how often every training was drawn, by its fingerprint

    def __call__(self, trial: Suggests) -> dict[str, Any]:
        """Return the settings of a trial by their paths."""
        chosen: dict[str, Any] = {}
        for domain in self.space:
            if _wanted(domain, chosen):
                chosen[domain.path] = domain.suggested(trial)
        key = fingerprint(override(self.base, chosen).task)
        self.drawn[key] += 1
        return chosen if self.drawn[key] == 1 else {**chosen, SEED: self.base.training.seed + self.drawn[key] - 1}


def _wanted(domain: Choice | Range, chosen: Mapping[str, Any]) -> bool:
    return all(chosen.get(path) in values for path, values in domain.when.items())


def check_space(space: Space, base: Run) -> None:
    """Refuse, with UserError and before any trial, a setting that does not exist, a value that does not fit it, and a
    setting that would make trials ask the teacher again or measure them differently.
    """
    if not space:
        raise UserError("the search space is empty; give at least one Choice or Range")
    teacher, paths = teacher_facts(teacher_at(base.teacher)), [domain.path for domain in space]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    if twice:
        raise UserError(f"the search space has {', '.join(twice)} twice; keep one of them")
    for domain in space:
        if any(f"{domain.path}.".startswith(f"{shared}.") for shared in SHARED):
            raise UserError(
                f"the search space changes {domain.path}, which all trials share, so that their targets are computed "
                "once and their figures can be compared; make it a sweep of its own"
            )
        for condition in _conditions(domain, space):
            for value in domain.extremes:
                validate(override(base, {**condition, domain.path: value}), teacher, local=True)


def check_points(points: Sequence[Mapping[str, Any]], space: Space) -> None:
    """Refuse, with UserError, settings of first trials that the space does not hold."""
    domains = {domain.path: domain for domain in space}
    for point in points:
        for path, value in point.items():
            domain = domains.get(path)
            if domain is None or not domain.holds(value):
                offered = ", ".join(domains) if domain is None else f"{path} in {list(domain.extremes)}"
                raise UserError(f"first has {path} = {value!r}, and the search space offers {offered}")


def _conditions(domain: Choice | Range, space: Space) -> list[dict[str, Any]]:
    """Every combination of values of the choices that a domain depends on: those in its `when`, and that of the group
    of settings that it is in. UserError where the space does not offer one of them.
    """
    offered = {other.path: other.extremes for other in space if isinstance(other, Choice)}
    for path, values in domain.when.items():
        strange = [value for value in values if value not in offered.get(path, ())]
        if strange:
            raise UserError(
                f"{domain.path} is searched when {path} is {strange[0]!r}, which the space does not offer: "
                f"{list(offered.get(path, ()))}"
            )
    groups = {path: values for path, values in offered.items() if domain.path.startswith(f"{path}.")}
    needed = {**groups, **domain.when}
    return [dict(zip(needed, values, strict=True)) for values in product(*needed.values())]
