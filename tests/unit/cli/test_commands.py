"""The command line: arguments that cannot be, and MLflow's pages and commands over a finished job's files."""

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
from tests.workplace import cli as cli_line
from tests.workplace import environment

from raystill.cli.main import main
from raystill.data.ports import answers
from raystill.data.server import running
from raystill.data.store import create_bucket
from raystill.launch.services import object_store
from raystill.tracking.runs import open_experiment


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample heart --count 0", "--count is 0; write 1 or more"),
        ("sample heart --steps 0", "--steps is 0; write 1 or more"),
        ("ui --port 70000", "raystill ui --port 5001"),
        ("pull models:/nano@champion", "run `raystill demo` first"),
        ("exec -- mlflow --version", "run `raystill demo` first"),
        ("exec -- no-such-command", "no-such-command cannot be run: No such file"),
    ],
)
def test_arguments_that_cannot_be_say_what_to_write(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if line.startswith(("ui", "exec -- no")):
        (tmp_path / ".raystill").mkdir()
        (tmp_path / ".raystill" / "mlflow.db").touch()
    monkeypatch.setattr(sys, "argv", ["raystill", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a job was typed, and the id of its run, which has a picture in the embedded store."""
    place = tmp_path_factory.mktemp("finished")
    uri = f"sqlite:///{place / '.raystill' / 'mlflow.db'}"
    with object_store("embedded", place / ".raystill"):
        create_bucket("s3://pictures")
        client = MlflowClient(tracking_uri=uri)
        run = client.create_run(open_experiment(uri, "x", "s3://pictures/mlflow")).info.run_id
        client.log_image(run, Image.new("RGB", (3, 2), "red"), artifact_file="grid.png")
    return place, run


@pytest.mark.cluster
@pytest.mark.slow
def test_a_command_finds_the_registry_and_its_files_and_is_told_to_stop(finished: tuple[Path, str]) -> None:
    place, run = finished
    code = (
        "import mlflow, time\n"
        f"picture = mlflow.artifacts.load_image(mlflow.get_run({run!r}).info.artifact_uri + '/grid.png')\n"
        "print(picture.size, flush=True)\n"
        "time.sleep(600)"
    )
    line = cli_line("exec", "--", "python", "-c")
    done = subprocess.run([*line, "raise SystemExit(7)"], cwd=place, env=environment(), check=False)
    assert done.returncode == 7
    process = subprocess.Popen([*line, code], cwd=place, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "(3, 2)\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert running(place / ".raystill" / "s3") is None


@pytest.mark.cluster
@pytest.mark.slow
def test_the_pages_show_pictures_of_the_embedded_store_and_stop_with_everything(finished: tuple[Path, str]) -> None:
    place, run = finished
    port = free_port()  # apart from those that the store takes
    line = cli_line("ui", "--port", str(port))
    process = subprocess.Popen(line, cwd=place, env=environment(), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith(f"http://127.0.0.1:{port} ")
        where = {"run_uuid": run, "path": "grid.png"}
        picture = requests.get(f"http://127.0.0.1:{port}/get-artifact", params=where, timeout=60)
        assert picture.content.startswith(b"\x89PNG")
        assert running(place / ".raystill" / "s3") is not None  # a second shell can pull meanwhile
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    deadline = time.monotonic() + 10
    while answers(port) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not answers(port)
    assert running(place / ".raystill" / "s3") is None
