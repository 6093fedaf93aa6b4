"""A Ray cluster of several node processes on this machine, started with `ray start` as the README says."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from tests.workplace import environment

from raystill.data.ports import HOST, answers

RAY = str(Path(sys.executable).with_name("ray"))
START_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Node:
    """What a node process is started with."""

    cpus: int = 1
    labels: dict[str, str] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    store_bytes: int = 100 * 2**20  # of its object store


@dataclass(frozen=True)
class Nodes:
    """A running cluster."""

    address: str  # of the head, as RAY_ADDRESS takes it
    dashboard: str
    environment: dict[str, str]  # of a process that uses it

    def ask(self, path: str, method: str = "GET") -> Any:
        """What the dashboard answers; its command line takes seconds to start."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        headers = {"Authorization": f"Bearer {token}"}
        answer = requests.request(method, self.dashboard + path, headers=headers, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def run(self, *line: str, timeout: float = 500, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end."""
        return subprocess.run(
            line, env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False
        )


@contextmanager
def started(nodes: Sequence[Node], home: Path) -> Iterator[Nodes]:
    """Start the nodes, the first one as head, with token authentication; stop them by their process ids."""
    scratch = Path(tempfile.mkdtemp(prefix="rs-", dir="/tmp"))  # names of sockets must be short
    token = scratch / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    port, dashboard, agents = free_port(), free_port(), [free_port() for _ in nodes]
    kept = environment() | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAYSTILL_HOME": str(home), "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",  # as after `source .venv/bin/activate`
    }  # fmt: skip
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for i, node in enumerate(nodes):
            line = [
                RAY, "start", "--block", f"--node-ip-address={HOST}", f"--num-cpus={node.cpus}",
                f"--object-store-memory={node.store_bytes}", f"--dashboard-agent-listen-port={agents[i]}",
                f"--labels={','.join(f'{n}={v}' for n, v in node.labels.items())}",
                f"--resources={json.dumps(node.resources)}",
                *(
                    [f"--address={HOST}:{port}"] if i else
                    ["--head", f"--port={port}", f"--dashboard-host={HOST}", f"--dashboard-port={dashboard}",
                     f"--temp-dir={scratch / 'ray'}", f"--ray-client-server-port={free_port()}"]
                ),
            ]  # fmt: skip
            log = (scratch / f"node-{i}.log").open("wb")
            processes.append(subprocess.Popen(line, env=kept, stdout=log, stderr=log, start_new_session=True))
            wait_for(dashboard if i == 0 else agents[i], processes[-1], scratch / f"node-{i}.log")
        yield Nodes(f"{HOST}:{port}", f"http://{HOST}:{dashboard}", kept | {"RAY_ADDRESS": f"{HOST}:{port}"})
    finally:
        for process in reversed(processes):
            stop(process)
        shutil.rmtree(scratch, ignore_errors=True)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a node answers at a port."""
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end and process.poll() is None:
        if answers(port):
            return
        time.sleep(0.3)
    raise AssertionError(f"a node did not start:\n{log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a node and everything of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def free_port() -> int:
    """A port that nobody listens on now, above those that Ray keeps for its workers (10002 to 19999)."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
