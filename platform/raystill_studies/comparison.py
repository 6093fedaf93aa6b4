"""The settings of a comparison of methods: entrants, budgets and what each of them may tune."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from raystill.config.checks import at_least
from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced, introduced_group
from raystill.config.home import REPORTS
from raystill.config.overrides import override, setting
from raystill.methods.method import STUDENT
from raystill.methods.table import Distilling
from raystill.models.hub import teacher_at
from raystill.models.pipeline import check_pipeline
from raystill.models.sampling import check_solver
from raystill.models.stock import read_scheduler, stock_sampler
from raystill.run.samples import Solver
from raystill.run.settings import Run, Targets
from raystill.search.settings import Search
from raystill.search.space import Space
from raystill_studies.probes import Probe
from raystill_studies.study import Question, Study, Variant

UNTRAINED = "the student before its training"
NAMES = {  # class of diffusers -> name in the tables
    "DDIMScheduler": "DDIM",
    "DPMSolverMultistepScheduler": "DPM-Solver++",
    "UniPCMultistepScheduler": "UniPC",
    "DEISMultistepScheduler": "DEIS",
}
UPDATES, SECONDS = "equal updates of the student", "equal wall seconds"  # titles of the budgets


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A method as it is compared: with its targets, and with the settings that it may tune."""

    label: Knob[str]
    method: Distilling
    targets: Targets  # its targets, of as many shards as the base run's
    space: Space  # settings that its trials search
    # path of a setting that counts steps -> share of a training's steps
    shares: Mapping[str, float] = introduced_group(dict)
    sampled: tuple[int, ...] | None = introduced(None)  # step counts of its sampler; None takes the base run's
    # those of its step counts at which its trials are compared; None takes the comparison's
    searched: tuple[int, ...] | None = introduced(None)
    paper: Knob[str | None] = None  # arXiv number, where it is another than the method's


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Settings of a comparison: the base run, the methods that enter, and two budgets."""

    name: Knob[str]
    base: Run
    entrants: tuple[Entrant, ...]  # the first one is what the others are compared with
    trials: int = introduced(5)  # trials for each entrant, run by the sweep tool
    # changes that an entrant's first trials make to its own settings, one trial for each
    first: tuple[Mapping[str, Any], ...] = introduced(({},))
    # sampling step counts at which trials are compared, where an entrant has them
    searched: tuple[int, ...] = introduced((1, 2, 4))
    updates: int = introduced(100)  # updates of the student in the first budget
    seconds: float = introduced(300.0)  # seconds of one process in the second budget, teacher calls included
    seeds: tuple[int, ...] = introduced((0, 1, 2))  # seeds of the trainings that are compared
    tuning_seed: int = introduced(3)  # training seed of the trials, none of those that are compared
    rounds: int = introduced(2)  # rounds in which every training is timed in turn
    solvers: tuple[str, ...] = introduced((  # classes of diffusers' solvers
        "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler",
    ))  # fmt: skip
    probe: Probe = introduced_group(Probe)
    # labels of the entrants that are measured, all where it is empty; the others keep the rows that they have, and all
    # keep the costs that they have, from which the second budget follows
    only: Knob[tuple[str, ...]] = ()
    # directory of NAME.json with every measurement, NAME.md with what people write in NAME.notes.md, and pictures
    output: Knob[str] = REPORTS

    @property
    def results(self) -> Path:
        """The file of the measurements; what is there is not measured again."""
        return Path(self.output) / f"{self.name}.json"

    @property
    def entering(self) -> tuple[Entrant, ...]:
        """The entrants that are measured."""
        return tuple(entrant for entrant in self.entrants if not self.only or entrant.label in self.only)

    def references(self) -> dict[str, Solver]:
        """Samplers without training, by label: the teacher with solvers, guided and not, and the untrained student."""
        teacher, guidance = self.base.teacher, self.base.evaluation.guidance
        names = {name: NAMES.get(name, name) for name in self.solvers}
        guided = {label: Solver(teacher, name, guidance) for name, label in names.items()}
        free = {f"{label}, not guided": Solver(teacher, name, 1.0) for name, label in names.items()}
        return {**guided, **free, UNTRAINED: Solver(teacher, None, 1.0)}

    def steps(self, entrant: Entrant) -> int:
        """Training steps in the first budget: more than the updates where other roles take turns with the student."""
        steps = found = 0
        while found < self.updates:
            found += STUDENT in entrant.method.turn(steps)
            steps += 1
        return steps

    def run_of(self, entrant: Entrant, steps: int, config: Mapping[str, Any]) -> Run:
        """The run of an entrant: the base run with its method, targets and tuned settings, of so many steps."""
        sampled = self.base.evaluation.student_steps if entrant.sampled is None else entrant.sampled
        run = override(
            self.base,
            {
                "method": entrant.method,
                "targets": replace(entrant.targets, shards=self.base.targets.shards),
                "evaluation.student_steps": sampled,
                "training.steps": steps,
                "training.checkpoint_every": steps,
            },
        )
        shares = {"optimizer.warmup_steps": self.base.optimizer.warmup_steps / self.updates, **entrant.shares}
        counted = {path: max(1, round(share * steps)) for path, share in shares.items()}
        return override(override(run, counted), config)

    def search(self, entrant: Entrant) -> Search:
        """The sweep that tunes an entrant, all trials of the first budget, with another seed and other starts than are
        compared: its own settings with every first change, then what the search proposes.
        """
        run = self.run_of(entrant, self.steps(entrant), {"training.seed": self.tuning_seed})
        evaluation = replace(run.evaluation, seed=run.evaluation.seed + 1)
        own = {domain.path: setting(run, domain.path) for domain in entrant.space}
        searched = self.searched if entrant.searched is None else entrant.searched
        return Search(
            name=f"{self.name}-{_word(entrant.label)}", base=replace(run, name=self.name, evaluation=evaluation),
            space=entrant.space, trials=self.trials, first=tuple({**own, **change} for change in self.first),
            random=max(1, len(self.first) - 1),  # those that have ended when the next one is proposed
            rungs=(), student_steps=tuple(n for n in searched if n in run.evaluation.student_steps),
        )  # fmt: skip

    def study(self, tuned: Mapping[str, Mapping[str, Any]], steps: Mapping[str, int]) -> Study:
        """The study of the tuned entrants in both budgets; `tuned` settings and `steps` in the second are by label."""
        entrants = [entrant for entrant in self.entrants if entrant.label in tuned]
        budgets = {UPDATES: {e.label: self.steps(e) for e in entrants}, SECONDS: steps}
        questions = tuple(
            Question(
                title=title,
                probes=True,
                variants=tuple(self.variant(e, budget[e.label], tuned[e.label]) for e in entrants),
            )
            for title, budget in budgets.items()
        )
        return Study(
            name=self.name, base=self.base, questions=questions, seeds=self.seeds, probe=self.probe, output=self.output
        )

    def variant(self, entrant: Entrant, steps: int, config: Mapping[str, Any]) -> Variant:
        """An entrant's training as a row of a study."""
        run = self.run_of(entrant, steps, config)
        names = ("method", "targets", "sampling", "weights", "optimizer", "evaluation")
        training = {f"training.{f.name}": getattr(run.training, f.name) for f in fields(run.training)}
        del training["training.seed"]  # the study's
        return Variant(label=entrant.label, changes={**{name: getattr(run, name) for name in names}, **training})

    def check(self) -> None:
        """Refuse, with UserError, what cannot run as it is written; nothing has been started yet."""
        at_least(1, "trials", self.trials)
        at_least(2, "updates", self.updates)
        at_least(1, "rounds", self.rounds)
        labels = [entrant.label for entrant in self.entrants]
        if len(set(labels)) < max(1, len(labels)):
            raise UserError(f"entrants are {labels}; give at least one, each with a label of its own")
        if unknown := [label for label in self.only if label not in labels]:
            raise UserError(f"only has {', '.join(unknown)}; the entrants are {', '.join(labels)}")
        if not self.seeds or len({*self.seeds, self.tuning_seed}) <= len(self.seeds) or self.seconds <= 0:
            raise UserError(
                f"seeds are {list(self.seeds)}, tuning_seed {self.tuning_seed} and seconds {self.seconds:g}; write "
                "different seeds, and a time: --set 'seeds=[0, 1, 2]' --set tuning_seed=3 --set seconds=300"
            )
        if not self.base.evaluation.captions:
            raise UserError("base.evaluation.captions is empty; name those of the picture's rows")
        check_pipeline(teacher_at(self.base.teacher))
        stock = stock_sampler(read_scheduler(teacher_at(self.base.teacher)))  # as its pipeline is loaded
        for name in self.solvers:
            check_solver(stock, name)
        for entrant in self.entrants:
            try:
                self._check(entrant)
            except UserError as error:
                raise UserError(f"entrant {entrant.label!r}: {error} (in the recipe's `entrants`)") from error

    def _check(self, entrant: Entrant) -> None:
        search = self.search(entrant)
        if not search.student_steps:
            asked, own = entrant.searched or self.searched, list(search.base.evaluation.student_steps)
            where = "its `searched`" if entrant.searched else f"--set 'searched={own}'"
            raise UserError(f"none of the steps that are searched, {list(asked)}, is among its own, {own}: {where}")
        search.check()


def _word(label: str) -> str:
    """A label as part of a file's name."""
    return "".join(letter if letter.isalnum() else "-" for letter in label.lower())
