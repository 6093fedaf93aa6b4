"""Where a training run's metrics and pictures go: to MLflow, or into files where MLflow is not installed."""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from raystill.config.extras import need
from raystill.config.fingerprint import fingerprint, identity
from raystill.tracking.files import FileRun

if TYPE_CHECKING:  # MLflow takes seconds to import, and is an extra
    from raystill.tracking.runs import TrackedRun


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """When queued metrics and pictures are sent, and how many may wait."""

    age_s: float = 10.0  # a queued entry waits at most this long
    retry_s: float = 15.0  # pause between two tries while MLflow does not answer
    closing_s: float = 60.0  # the end of a run waits at most this long for the last entries
    rows: int = 20_000  # most rows of metrics that wait; beyond, every second one is dropped
    pictures: int = 64  # most pictures that wait; beyond, every second one is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracking:
    """Which MLflow run a training run reports to, or which folder."""

    # of the tracking server or SQLite file, as `tracking_uri` gives it; None where MLflow is not installed
    uri: str | None
    experiment: str  # name of the MLflow experiment
    name: str  # of the training run; with the recipe and its inputs it identifies the MLflow run
    inputs: str = ""  # fingerprint of what the recipe names by its place, such as a teacher's path
    without: tuple[str, ...] = ()  # dotted paths of settings that may change while the run stays the same
    artifact_root: str | None = None  # of files, s3://bucket/mlflow; None: the server's, or beside the SQLite file
    # directory of this machine: metrics that could not be delivered wait in its `spool` until the run goes on, and
    # without MLflow every run has a folder in its `runs`
    directory: Path | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # further tags of the MLflow run
    pace: Pace = field(default_factory=Pace)  # when metrics are sent


def tracking_uri(workdir: Path) -> str | None:
    """The tracking server's address: MLFLOW_TRACKING_URI where it is set, else a SQLite file in `workdir`; None where
    MLflow is not installed; UserError where it is not and yet MLFLOW_TRACKING_URI is set.
    """
    server = os.environ.get("MLFLOW_TRACKING_URI")
    if importlib.util.find_spec("mlflow") is None:
        if server:
            need("mlflow", purpose="MLFLOW_TRACKING_URI")
        return None
    return server or f"sqlite:///{workdir.resolve() / 'mlflow.db'}"


def run_key(recipe: object, tracking: Tracking) -> str:
    """What identifies a training run: the fingerprint of its recipe, its inputs and its name."""
    known = identity(recipe, tracking.without)
    return fingerprint({"recipe": known, "inputs": tracking.inputs, "name": tracking.name})


def check_experiment(uri: str | None, name: str, artifact_root: str | None = None) -> str | None:
    """Find or make an experiment and return where it keeps files, None without MLflow; UserError where MLflow does not
    answer or stores elsewhere. Once on the driver: the first call makes the tables of a SQLite file, which two
    processes must not do.
    """
    if uri is None:
        return None
    from raystill.tracking.runs import files_of, open_experiment

    open_experiment(uri, name, artifact_root)
    return files_of(uri, name)


def tracked(tracking: Tracking, recipe: object) -> "TrackedRun | FileRun":
    """The context of one training run, begun or gone on with: in MLflow, or as a folder where it is not installed."""
    if tracking.uri is None:
        return _folder(tracking, recipe)
    from raystill.tracking.runs import TrackedRun

    return TrackedRun(tracking, recipe)


def history(tracking: Tracking, recipe: object, name: str) -> list[float]:
    """Read back one metric of a training run, in the order of steps."""
    if tracking.uri is None:  # which is read without being begun again
        return [value for _, value in sorted(_folder(tracking, recipe).history(name))]
    with tracked(tracking, recipe) as run:
        return [value for _, value in sorted(run.history(name))]


def _folder(tracking: Tracking, recipe: object) -> FileRun:
    assert tracking.directory is not None
    name = re.sub(r"[^\w\- ]", "_", tracking.name)[:60]
    return FileRun(tracking.directory / "runs" / f"{name}-{run_key(recipe, tracking)[:12]}", recipe)
