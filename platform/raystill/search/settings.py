"""The settings of a sweep."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.config.checks import at_least
from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced
from raystill.config.home import REPORTS
from raystill.config.overrides import override
from raystill.run.settings import Run
from raystill.run.validate import validate
from raystill.search.space import Space, check_points, check_space


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Settings of a sweep: the run that it changes, the search space, and how trials are drawn and stopped."""

    name: Knob[str]
    base: Run  # run whose settings the trials change
    space: Space
    trials: int = introduced(16)  # number of trials
    # settings of the first trials; what one of them leaves out is drawn
    first: tuple[Mapping[str, Any], ...] = introduced(())
    random: int = introduced(6)  # first trials that are drawn at random, for the search algorithm to learn from
    seed: int = introduced(0)  # seed of the search algorithm
    # sampling step counts whose Frechet distances are a trial's quality
    student_steps: tuple[int, ...] = introduced((4,), former="steps")
    rungs: tuple[int, ...] = introduced((30, 60))  # steps of training at which the worse trials are stopped
    keep: int = introduced(2)  # reduction factor: one of so many trials goes on from a rung
    max_failures: Knob[int] = 1  # restarts of a failing trial, after which the sweep goes on without it
    output: Knob[str] = REPORTS  # directory of NAME.md with what people write in NAME.notes.md, and its pictures

    @property
    def report(self) -> Path:
        """The file of the report."""
        return Path(self.output) / f"{self.name}.md"

    def run_of(self, config: Mapping[str, Any]) -> Run:
        """The run of a trial: the base run with the trial's settings."""
        return override(self.base, config)

    def check(self) -> None:
        """Refuse, with UserError, a sweep that cannot run as it is written; nothing has been started yet."""
        validate(self.base, local=True)
        at_least(max(1, len(self.first)), "trials", self.trials)
        check_space(self.space, self.base)
        check_points(self.first, self.space)
        if self.base.cluster.workers != 1:
            raise UserError(
                f"a trial is one process, and base.cluster.workers is {self.base.cluster.workers}: "
                "--set base.cluster.workers=1"
            )
        if not set(self.student_steps) <= set(self.base.evaluation.student_steps) or not self.student_steps:
            raise UserError(
                f"student_steps is {self.student_steps} and base.evaluation.student_steps "
                f"{self.base.evaluation.student_steps}; write steps that are evaluated: --set 'student_steps=[4]'"
            )
        expected = tuple(self.rungs[0] * self.keep**i for i in range(len(self.rungs))) if self.rungs else ()
        if self.rungs != expected or self.keep < 2 or (self.rungs and self.rungs[-1] >= self.base.training.steps):
            raise UserError(
                f"the rungs are {self.rungs} and one of {self.keep} trials is kept; every rung is {self.keep} times "
                f"the one before, and below base.training.steps, {self.base.training.steps}"
            )
