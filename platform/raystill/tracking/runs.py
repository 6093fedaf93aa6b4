"""One MLflow run per training run, also across restarts; used by rank 0 only.

Nothing of the environment is logged: parameters come from the recipe alone, and addresses lose their passwords
in messages.
"""

import json
import logging
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Param, RunTag
from mlflow.exceptions import MlflowException
from PIL import Image

from raystill.config.digest import canonical
from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.tracking.commit import code_commit
from raystill.tracking.delivery import AWAY, Delivery, Picture, Row, without_password
from raystill.tracking.tracking import Tracking, run_key

log = logging.getLogger(__name__)

LONGEST_VALUE = 6000  # characters of a parameter, MLflow's limit
_PARAMS_PER_CALL = 100  # MLflow's limit
_NAME = re.compile(r"[\w\-. ]+(/[\w\-. ]+)*")
_KILLED = (KeyboardInterrupt, SystemExit, GeneratorExit)


class TrackingError(UserError):
    """MLflow cannot be reached or used as asked."""


def open_experiment(uri: str, name: str, artifact_root: str | None = None) -> str:
    """Find or make an experiment and return its id; `TrackingError` where MLflow does not answer or stores elsewhere.

    Call it once on the driver: the first call makes the tables of a SQLite file, which two processes must not do."""
    root = artifact_root or _beside(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            _create_experiment(client, name, root)
            found = client.get_experiment_by_name(name)
    except AWAY as error:
        raise unreachable(uri, error) from error
    if found is None or found.lifecycle_stage != "active":
        raise TrackingError(
            f"the MLflow experiment {name!r} was deleted; restore it or name another with experiment=NAME"
        )
    if artifact_root is not None and found.artifact_location.rstrip("/") != artifact_root.rstrip("/"):
        raise TrackingError(
            f"the MLflow experiment {name!r} keeps its files at {found.artifact_location}, this run asks for "
            f"{artifact_root}: name another experiment, or give that place"
        )
    experiment_id: str = found.experiment_id
    return experiment_id


def files_of(uri: str, name: str) -> str:
    """The address below which an experiment that is there keeps the files of its runs."""
    try:
        found = MlflowClient(tracking_uri=uri).get_experiment_by_name(name)
    except AWAY as error:
        raise unreachable(uri, error) from error
    assert found is not None
    place: str = found.artifact_location
    return place


class TrackedRun:
    """Context manager for the MLflow run of one training run: starts or continues it, and closes it with its status."""

    def __init__(self, tracking: Tracking, recipe: object) -> None:
        assert tracking.uri is not None
        self._tracking, self._uri = tracking, tracking.uri
        self._recipe, self._fingerprint = canonical(recipe), fingerprint(recipe)
        self._key = run_key(recipe, tracking)
        self.resumed = False
        self.run_id = ""
        self._known: dict[str, int] = {}  # metric name -> last step that MLflow has
        self._params: dict[str, str] = {}  # parameters that MLflow has: it keeps the first value of each

    def __enter__(self) -> "TrackedRun":
        tracking = self._tracking
        experiment_id = open_experiment(self._uri, tracking.experiment, tracking.artifact_root)
        self._client = MlflowClient(tracking_uri=self._uri)
        try:
            self._start_or_resume(experiment_id)
            self._log_recipe()
        except AWAY as error:
            raise unreachable(self._uri, error) from error
        self._delivery = Delivery(self._client, self.run_id, tracking.pace)
        self._send_spooled()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spool(self._delivery.close())
        status = "FINISHED" if kind is None else "KILLED" if issubclass(kind, _KILLED) else "FAILED"
        try:
            self._client.set_terminated(self.run_id, status)
        except AWAY as problem:
            log.warning(
                "MLflow is away, so run %s stays marked as running: %s", self.run_id, without_password(str(problem))
            )

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Queue metrics of one step; returns at once, also while MLflow is away.

        Values that a resumed run has already logged before its restart are not logged twice."""
        for name in values:
            _check_name(name)
        new = {name: float(value) for name, value in values.items() if step > self._known.get(name, -1)}
        if new:
            self._delivery.put(Row(step, _now_ms(), new))

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Queue a picture (shown by MLflow with a slider over steps); returns at once."""
        _check_name(name)
        self._delivery.put(Picture(step, _now_ms(), name, picture.copy()))

    def history(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(point.step, point.value) for point in self._client.get_metric_history(self.run_id, name)]

    def text(self, name: str, text: str) -> None:
        """Keep a text file with the run; `TrackingError` where MLflow is away."""
        try:
            self._client.log_text(self.run_id, text, name)
        except AWAY as error:
            raise unreachable(self._uri, error) from error

    def _start_or_resume(self, experiment_id: str) -> None:
        wanted = f"tags.`raystill.run_key` = '{self._key}'"
        found = self._client.search_runs([experiment_id], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        tags = {
            **self._tracking.tags,
            "raystill.run_key": self._key,
            "raystill.fingerprint": self._fingerprint,
            "raystill.commit": code_commit(),
        }
        if not found:
            run = self._client.create_run(experiment_id, tags=tags, run_name=self._tracking.name)
            self.run_id = run.info.run_id
            return
        self.resumed, self.run_id = True, found[0].info.run_id
        self._client.update_run(self.run_id, status="RUNNING")
        self._client.log_batch(self.run_id, tags=[RunTag(k, v) for k, v in tags.items()], synchronous=True)
        self._params = dict(found[0].data.params)
        for name in found[0].data.metrics:
            self._known[name] = max(m.step for m in self._client.get_metric_history(self.run_id, name))

    def _log_recipe(self) -> None:
        """Log the settings as parameters unless MLflow has them; `recipe.json` has the newest values of knobs."""
        values = {"fingerprint": self._fingerprint, **flatten(self._recipe)}
        params = [Param(name, value) for name, value in values.items() if name not in self._params]
        for start in range(0, len(params), _PARAMS_PER_CALL):
            self._client.log_batch(self.run_id, params=params[start : start + _PARAMS_PER_CALL], synchronous=True)
        self._client.log_dict(self.run_id, self._recipe, "recipe.json")

    def _spool_file(self) -> Path | None:
        directory = self._tracking.directory
        return None if directory is None else directory / "spool" / f"{self.run_id}.jsonl"

    def _spool(self, rows: list[Row]) -> None:
        """Write undelivered rows to the spool file in place of its old ones; delete the file where there are none."""
        file = self._spool_file()
        if not rows:
            if file is not None:
                file.unlink(missing_ok=True)
            return
        if file is None:
            log.warning("%d rows of metrics never reached MLflow", len(rows))
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text("".join(json.dumps([r.step, r.time_ms, dict(r.values)]) + "\n" for r in rows))
        part.replace(file)
        log.warning(
            "MLflow is away: %d rows of metrics wait in %s; running the same job again sends them", len(rows), file
        )

    def _send_spooled(self) -> None:
        """Queue the rows that an earlier attempt spooled; the file stays until the end, so that it outlives a kill."""
        file = self._spool_file()
        if file is None or not file.exists():
            return
        arrived = dict(self._known)
        for line in file.read_text().splitlines():
            step, time_ms, values = json.loads(line)
            new = {name: value for name, value in values.items() if step > arrived.get(name, -1)}
            if new:
                self._delivery.put(Row(step, time_ms, new))
            for name in new:
                self._known[name] = max(step, self._known.get(name, -1))


def flatten(recipe: Any, prefix: str = "") -> dict[str, str]:
    """Turn a canonical recipe into parameters: dotted path -> text of at most 6000 characters."""
    if isinstance(recipe, Mapping) and recipe:
        parts = [flatten(value, f"{prefix}.{name}" if prefix else str(name)) for name, value in recipe.items()]
        return {name: value for part in parts for name, value in part.items()}
    text = recipe if isinstance(recipe, str) else json.dumps(recipe)
    if len(text) > LONGEST_VALUE:
        text = text[: LONGEST_VALUE - 60] + f"... ({len(text)} characters; the whole is in recipe.json)"
    # Free text can be a key where a field is a mapping; MLflow takes few characters, and 250 of them.
    return {re.sub(r"[^\w\-. :]", "_", prefix or "recipe")[-250:]: text}


def unreachable(uri: str, error: Exception) -> TrackingError:
    """Make the error for an MLflow (or its file store) that does not answer."""
    return TrackingError(
        f"MLflow at {without_password(uri)} did not do what was asked: {without_password(str(error))}\n"
        "Check MLFLOW_TRACKING_URI (unset it to use a SQLite file) and, for files on S3, AWS_ENDPOINT_URL and the keys."
    )


def _create_experiment(client: MlflowClient, name: str, root: str | None) -> None:
    try:
        client.create_experiment(name, artifact_location=root)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another trial of a sweep was faster: that is fine
            raise


def _beside(uri: str) -> str | None:
    # MLflow's default is ./mlruns of whoever calls first, which on a cluster is anywhere.
    file = uri.removeprefix("sqlite:///")
    return (Path(file).resolve().parent / "mlartifacts").as_uri() if file != uri else None


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError(f"metric and picture names look like area/quantity_unit, found {name!r}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
