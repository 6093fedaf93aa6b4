"""MLflow's web interface for a registry that is a file on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from raystill.config.errors import UserError
from raystill.tracking.delivery import without_password

HOST = "127.0.0.1"
START_TIMEOUT_S = 180.0  # a start usually takes 15 s, several times that on a machine that trains meanwhile
STOP_TIMEOUT_S = 10.0


@contextmanager
def pages(uri: str, port: int, directory: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Serve MLflow's web interface to a database on loopback; gives its address, once it answers, and its process,
    which logs to `directory`/ui.log. UserError for a tracking server, which has pages of its own, and where the pages
    do not start.
    """
    if uri.startswith("http"):
        raise UserError(f"the registry is a server with pages of its own: open {without_password(uri)} in a browser")
    log, address = directory / "ui.log", f"http://{HOST}:{port}"
    line = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--host", HOST, "--port", str(port)]
    with log.open("wb") as written:
        # A session of its own, so that its workers can be stopped with it, and Ctrl-C reaches us first.
        process = subprocess.Popen(
            [*line, "--workers", "1"], stdin=subprocess.DEVNULL, stdout=written, stderr=written, cwd=directory,
            start_new_session=True, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )  # fmt: skip
    try:
        _wait(process, address, log)
        yield address, process
    finally:
        _stop(process)


def _wait(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if requests.get(f"{address}/health", timeout=2).ok:
                return
        except requests.RequestException:
            time.sleep(0.2)
    tail = without_password("\n".join(log.read_text("utf-8", "replace").splitlines()[-15:]))
    raise UserError(f"MLflow's pages did not start at {address}. The end of {log}:\n{tail}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the server and its workers."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(STOP_TIMEOUT_S)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
