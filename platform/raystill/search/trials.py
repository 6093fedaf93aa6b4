"""Trials of a sweep: Ray Tune trains them from rung to rung and stops the worse ones early."""

import logging
import math
import os
import statistics
import warnings
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch
from tqdm import tqdm

from raystill.config.fingerprint import fingerprint
from raystill.config.home import DIRECTORY
from raystill.launch.cluster import settle
from raystill.launch.command import quiet_libraries
from raystill.launch.launcher import LocalLauncher
from raystill.launch.placement import threads_of
from raystill.run.distill import (
    checkpoints_of,
    compute_targets,
    computed_since,
    inputs_of,
    stored_targets,
    train_student,
    trained_student,
)
from raystill.run.evaluate import evaluate
from raystill.search.settings import Search
from raystill.search.space import ConditionalSpace
from raystill.tracking.runs import TrackedRun
from raystill.tracking.tracking import Tracking
from raystill.training.task import last_step

log = logging.getLogger(__name__)
FORMAT = 3  # raised whenever modules move that Ray Tune's own files name, which it reads when a sweep goes on
METRIC = "quality"  # mean log Frechet distance over the step counts that are searched for; smaller is better


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """Everything that a trial's process is sent."""

    search: Search
    tracking: Tracking  # where every trial's MLflow run is tracked, a child of the sweep's
    directory: Path  # the driver's directory, for relative paths in the settings


def trial(config: dict[str, Any], settings: TrialSettings) -> None:
    """Train a trial from rung to rung in this process, and report its quality at each rung to Ray Tune."""
    quiet_libraries()
    search = settings.search
    settle(threads_of(search.base.cluster.worker), settings.directory)  # then files that settings name are found
    run = search.run_of(config)
    launcher = LocalLauncher(torch.device("cuda" if run.cluster.worker.gpus else "cpu"))
    before = stored_targets(run)
    targets, index = compute_targets(run, launcher)
    checkpoints = checkpoints_of(run, targets)
    reached = last_step(checkpoints)  # by a trial that was killed: rungs below were reported then
    # One run for all rungs, since MLflow may go away in between. Ray Tune ends a trial by SystemExit where it reports:
    # that is no kill.
    with TrackedRun(settings.tracking, run) as recorder, suppress(SystemExit):
        for rung in (rung for rung in (*search.rungs, run.training.steps) if rung >= reached):
            train_student(run, targets, index, launcher, lambda: nullcontext(recorder), until=rung)
            trained = trained_student(run, checkpoints, targets, index, rung)
            figures = evaluate(run, launcher, trained).student
            quality = statistics.fmean(math.log(figures[str(n)]["frechet"]) for n in search.student_steps)
            distances = {f"evaluation/frechet_{n}": f["frechet"] for n, f in figures.items()}
            recorder.metrics(rung, {**distances, f"sweep/{METRIC}": quality})
            found = {METRIC: quality, "step": rung, "figures": figures}
            tune.report({**found, "targets": targets.uri, "computed": computed_since(before, index)})


class Progress(tune.Callback):
    """A bar over the trials on the driver's terminal, with the best quality so far."""

    def __init__(self, trials: int) -> None:
        self._trials = trials
        self._bar: Any = None  # made where it is shown: Ray Tune pickles callbacks before
        self._best = math.inf

    def setup(self, stop: Any = None, num_samples: Any = None, total_num_samples: Any = None, **info: Any) -> None:
        """Show the progress bar."""
        self._bar = tqdm(total=self._trials, desc="trials", unit="trial")

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Show the best quality so far beside the bar, at the result of a rung."""
        self._best = min(self._best, result[METRIC])
        self._bar.set_postfix_str(f"best Frechet distance {math.exp(self._best):.4g}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Move the bar after a trial that has ended."""
        self._advance(trials)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say in one line why a trial is given up, and move the bar."""
        tqdm.write(f"trial {trial.trial_id} is given up: {last_line(trial.get_error())}")
        self._advance(trials)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """Close the bar, and leave it where it is."""
        self._advance(trials)
        self._bar.close()

    def _advance(self, trials: list[Any]) -> None:
        self._bar.update(sum(one.is_finished() for one in trials) - self._bar.n)


def last_line(error: object) -> str:
    """The last line of an error's text: what it says, without the traceback that Ray puts before it."""
    return str(error).strip().splitlines()[-1]


def state_of(search: Search) -> Path:
    """The directory where Ray Tune keeps what it knows of a sweep's trials; another one where `FORMAT` is another."""
    of = fingerprint([FORMAT, search, search.base.work, inputs_of(search.base)])
    return (DIRECTORY / "sweeps" / f"{search.name}-{of}").resolve()


def tuned(search: Search, tracking: Tracking, concurrent: int) -> tune.ResultGrid:
    """Run the trials of a sweep, or those that a stopped sweep had not finished, and return their results; the
    unfinished ones are compared at the rungs with each other only, since Ray Tune's scheduler forgets what went before.
    """
    settings = TrialSettings(search=search, tracking=tracking, directory=Path.cwd())
    share = search.base.cluster.worker
    placed: dict[str, Any] = {"bundle_label_selector": [dict(share.labels)]} if share.labels else {}
    trainable = tune.with_resources(
        tune.with_parameters(trial, settings=settings), tune.PlacementGroupFactory([share.amounts], **placed)
    )
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends a sweep as it ends any other job
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables would break the bar
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # tracebacks of trials, of which `Progress` tells
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    state = state_of(search)
    if tune.Tuner.can_restore(str(state)):
        log.info("going on with the sweep in %s", state)
        return tune.Tuner.restore(str(state), trainable=trainable, resume_unfinished=True, restart_errored=False).fit()
    sampler = optuna.samplers.TPESampler(
        seed=search.seed, n_startup_trials=search.random, multivariate=True, group=True
    )
    algorithm = OptunaSearch(
        space=ConditionalSpace(search.space, search.base), metric=METRIC, mode="min", sampler=sampler,
        points_to_evaluate=[dict(point) for point in search.first],
    )  # fmt: skip
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            num_samples=search.trials,
            max_concurrent_trials=concurrent,
            search_alg=algorithm,
            scheduler=_asha(search),
        ),
        run_config=tune.RunConfig(
            name=state.name,
            storage_path=str(state.parent),
            failure_config=tune.FailureConfig(max_failures=search.max_failures),
            callbacks=[Progress(search.trials)],
            verbose=0,
        ),
    ).fit()


def _asha(search: Search) -> ASHAScheduler:
    """The scheduler that stops all but one of `keep` trials at every rung (ASHA)."""
    grace = search.rungs[0] if search.rungs else search.base.training.steps
    return ASHAScheduler(
        time_attr="step", metric=METRIC, mode="min", max_t=search.base.training.steps, grace_period=grace,
        reduction_factor=search.keep,
    )  # fmt: skip
