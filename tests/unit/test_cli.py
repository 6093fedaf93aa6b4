"""The command line: arguments that cannot be, and MLflow's pages over a finished job's files."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient
from PIL import Image
from tests.cluster.nodes import free_port

from raystill import cli
from raystill.data.ports import answers
from raystill.data.server import running
from raystill.data.store import create_bucket
from raystill.orchestration.services import object_store
from raystill.tracking.runs import open_experiment

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample heart --count 0", "--count is 0; write 1 or more"),
        ("sample heart --steps 0", "--steps is 0; write 1 or more"),
        ("ui --port 70000", "raystill ui --port 5001"),
        ("pull models:/nano@champion", "run `make demo` first"),
    ],
)
def test_arguments_that_cannot_be_say_what_to_write(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if line.startswith("ui"):
        (tmp_path / ".raystill").mkdir()
        (tmp_path / ".raystill" / "mlflow.db").touch()
    monkeypatch.setattr(sys, "argv", ["raystill", *line.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.cluster
@pytest.mark.slow
def test_the_pages_show_pictures_of_the_embedded_store_and_stop_with_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / ".raystill"
    uri = f"sqlite:///{home / 'mlflow.db'}"
    with object_store("embedded", home):
        create_bucket("s3://pictures")
        client = MlflowClient(tracking_uri=uri)
        run = client.create_run(open_experiment(uri, "x", "s3://pictures/mlflow")).info.run_id
        client.log_image(run, Image.new("RGB", (3, 2), "red"), artifact_file="grid.png")
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("AWS_", "MLFLOW_TRACKING"))}
    port = free_port()  # apart from those that the store takes
    process = subprocess.Popen(
        [sys.executable, "-m", "raystill.cli", "ui", "--port", str(port)], cwd=tmp_path, stdout=subprocess.PIPE,
        text=True, env={**environment, "PYTHONPATH": str(ROOT / "platform")},
    )  # fmt: skip
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"http://127.0.0.1:{port} ")
        where = {"run_uuid": run, "path": "grid.png"}
        picture = requests.get(f"http://127.0.0.1:{port}/get-artifact", params=where, timeout=60)
        assert picture.content.startswith(b"\x89PNG")
        assert running(home / "s3") is not None  # a second shell can pull meanwhile
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    deadline = time.monotonic() + 10
    while answers(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(port)
    assert running(home / "s3") is None
