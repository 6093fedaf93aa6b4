"""Processes that are no children of the process that starts them, and so outlive a signal to it and its children.

A cluster that stops a job signals its driver and every child of it at once; a server that is still needed to save what
the driver has must not be among them. A detached process ends when it is stopped, or when the process that started it
is gone.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

POLL_S = 0.05
# The outer shell ends at once, so that the inner one becomes a child of init. That watches its starter ($0) from the
# background and turns into the command.
WATCHED = '(while kill -0 "$0" && kill -0 $$; do sleep 0.5; done; kill $$) 2>/dev/null & exec "$@"'
DETACHED = f"sh -c '{WATCHED}' \"$@\" >&2 & echo $!"


class Detached:
    """A running process that outlives signals to its starter, but not the starter."""

    def __init__(self, command: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str]) -> None:
        """Start the command in a session of its own, where no Ctrl-C arrives; its output goes to the end of `log`."""
        with log.open("ab") as file:
            started = subprocess.run(
                ["sh", "-c", DETACHED, "sh", str(os.getpid()), *command], stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=file, cwd=cwd, env=dict(environment), start_new_session=True, check=True,
            )  # fmt: skip
        self.pid = int(started.stdout)

    def running(self) -> bool:
        """Whether the process is still running."""
        try:
            return bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False

    def stop(self, timeout_s: float) -> None:
        """Send SIGTERM, and SIGKILL where the process has not ended in time. Stopping twice is no error."""
        try:
            process = psutil.Process(self.pid)
            process.terminate()
            end = time.monotonic() + timeout_s
            while self.running():
                if time.monotonic() > end:
                    process.kill()
                time.sleep(POLL_S)
        except psutil.NoSuchProcess:
            return
