"""The commands that take a recipe, by name, and the scripts of `jobs/`, which are the same commands for clusters."""

import argparse
import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from raystill.config.errors import UserError
from raystill.config.extras import need
from raystill.launch.command import guarded

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Job:
    """A command that takes a recipe: what it says of itself, and what it runs."""

    text: str  # what it does; the first sentence is its line in the list of commands
    example: str  # options that are typed after its name
    recipe: str  # recipe by default
    takes: str  # name of the class of settings that its recipes give
    action: str  # "module:function" that is called with the settings; imported when it runs
    trains: bool = False  # whether it trains a network in the first place
    local: bool = True  # whether the function takes `local`, to run in this process without a cluster
    tracked: bool = False  # whether it cannot do without MLflow
    also: tuple[str, ...] = ()  # modules that it needs beside Ray and DeepSpeed


JOBS = {
    "distill": Job(
        "Distil a teacher into a few-step student: targets, training, evaluation, registration. Run it again to go on.",
        "--recipe nano --set method.path.sigma=0.05 --set training.steps=1000",
        "nano", "Run", "raystill.run.jobs:launch_distillation", trains=True,
    ),
    "targets": Job(
        "Compute a run's targets with the frozen teacher, and nothing else. A later distillation finds them.",
        "--recipe nano --set targets.estimator.solver_steps=20",
        "nano", "Run", "raystill.run.jobs:launch_targets",
    ),
    "evaluate": Job(
        "Evaluate a finished training with three seeds of the starts. Print their spread and the distances' floor.",
        "--recipe nano --set 'evaluation.teacher_steps=[1,4]' --set evaluation.reference_steps=8",
        "nano", "Run", "raystill.run.jobs:launch_evaluation",
    ),
    "search": Job(
        "Search settings of a run with Ray Tune, and register the best trial's adapter. Run it again to go on.",
        "--recipe nano_sweep --set trials=16 --set 'student_steps=[4]'",
        "nano_sweep", "Search", "raystill.search.launch:launch_search", local=False, tracked=True, also=("optuna",),
    ),
    "pretrain": Job(
        "Train a whole Stable Diffusion pipeline from shards: autoencoder, then UNet and text encoder. Run it again to "
        "resume.",
        "--recipe nano:teacher --set shards=s3://bucket/mine --set output=teachers/mine",
        "nano:teacher", "Pretraining", "raystill.run.jobs:launch_pretraining", trains=True,
    ),
    "bench": Job(
        "Measure the loop (engine, data, tracking) against the bare forward and backward of the same model.",
        "--recipe nano --set cluster.zero_stage=1",
        "nano", "Run", "raystill.run.bench:bench",
    ),
    "study": Job(
        "Measure many variants of one run, several seeds each, and write the report. Run it again to go on.",
        "--recipe rayflow_study --set 'seeds=[0]' --set base.training.steps=50",
        "rayflow_study", "Study", "raystill_studies.report:launch_study", tracked=True,
    ),
    "compare": Job(
        "Compare methods at equal budgets, three seeds each, and write the report. Run it again to go on.",
        "--recipe methods --set seconds=300 --set 'seeds=[0]'",
        "methods", "Comparison", "raystill_studies.compare:launch_comparison",
        local=False, tracked=True, also=("optuna",),
    ),
    "demo": Job(
        "Run the whole platform on this machine: store, targets, distillation, evaluation, registry, pull.",
        "--set training.steps=300",
        "nano", "Run", "raystill.run.demo:demo", local=False, tracked=True,
    ),
}  # fmt: skip


def add(commands: Any) -> None:
    """Add the commands to those of `raystill`."""
    for name, job in JOBS.items():
        parser = commands.add_parser(
            name, help=_first(job.text), description=_description(f"raystill {name}", job),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_options(parser, job)
        parser.set_defaults(run=partial(act, name))


def main(name: str) -> int:
    """Run the command line of `jobs/NAME.py`; return its exit status."""
    parser = argparse.ArgumentParser(
        description=_description(f"python jobs/{name}.py", JOBS[name]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, JOBS[name])
    typed = parser.parse_args()
    return guarded(partial(act, name, typed))


def _first(text: str) -> str:
    """The first sentence of a text, as a line of the list of commands."""
    sentence = text.partition(". ")[0].rstrip(".")
    return sentence[0].lower() + sentence[1:]


def _description(line: str, job: Job) -> str:
    return f"{job.text}\n\n{line} {job.example}"


def add_options(parser: argparse.ArgumentParser, job: Job) -> None:
    """Add a job's options."""
    parser.add_argument(
        "--recipe",
        default=job.recipe,
        help="NAME[:FUNCTION] of a shipped recipe, or FILE.py[:FUNCTION] (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a setting by its dotted path; repeatable",
    )
    if job.local:
        parser.add_argument("--local", action="store_true", help="run in this process: one device, plain torch, no Ray")
    if job.trains:
        parser.add_argument(
            "--profile", action="store_true", help="trace some steps of each training, and write what took their time"
        )
    parser.add_argument("--show", action="store_true", help="print the resolved settings with their paths, and stop")


def act(name: str, typed: argparse.Namespace) -> None:
    """Resolve a job's recipe, override it, and print what the job returns, or the settings alone."""
    from raystill.config.overrides import override, parse_assignments
    from raystill.recipes.resolve import advice, resolve

    job, found = JOBS[name], resolve(typed.recipe)
    _check_kind(name, typed.recipe, type(found))
    changes = parse_assignments(typed.set)
    run = override(found, changes)
    if job.takes == "Run" and (line := advice(found, run, changes)):
        log.warning("%s", line)
    if typed.show:
        print(shown(run))
        return
    _check_extras(name, local=job.local and typed.local)
    if job.trains and typed.profile:
        os.environ["RAYSTILL_PROFILE"] = "1"
    action = _imported(job.action)
    print(action(run, local=typed.local) if job.local else action(run))


def _imported(action: str) -> Callable[..., object]:
    """The function that "module:function" names."""
    module, _, function = action.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


def _check_extras(name: str, *, local: bool) -> None:
    """Refuse, with UserError, a job whose packages are not installed."""
    if not local:
        alone = "in this process alone: --local" if JOBS[name].local else ""
        need("ray", "deepspeed", *JOBS[name].also, purpose=f"raystill {name}", otherwise=alone)
    if JOBS[name].tracked:
        need("mlflow", purpose=f"raystill {name}")


def _check_kind(name: str, recipe: str, found: type) -> None:
    """Refuse, with UserError, a recipe for another job."""
    kind = found.__name__
    if JOBS[name].takes not in {base.__name__ for base in found.__mro__}:
        jobs = ", ".join(other for other, job in JOBS.items() if job.takes == kind)
        raise UserError(
            f"recipe {recipe!r} gives a {kind}{f', for {jobs}' if jobs else ''}; {name} takes a {JOBS[name].takes}, "
            f"such as --recipe {JOBS[name].recipe} gives"
        )


def shown(run: Any) -> str:
    """Every setting of a run as `--set` takes it, and the fingerprint of those that results depend on."""
    from raystill.config import overrides
    from raystill.config.fingerprint import fingerprint

    lines = [f"{path}={value}" for path, value in overrides.shown(run).items()]
    return "\n".join([*lines, f"# fingerprint {fingerprint(run)}"])
