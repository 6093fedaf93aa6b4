"""Commands around runs: send a job to a cluster, show runs in a browser, run another program with the registry."""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from raystill.cli.registry import DEFAULT_MODEL, registry, stored
from raystill.config.errors import UserError


def add(commands: Any) -> None:
    """Add the commands to those of `raystill`."""
    job = commands.add_parser("submit", help="send a job to a running Ray cluster and follow its log")
    job.add_argument("--address", help="of the dashboard, such as http://HEAD:8265 (default: RAY_ADDRESS)")
    job.add_argument(
        "--runtime-env",
        type=Path,
        default=Path("cluster/runtime_env.yaml"),
        help="what goes along (default: %(default)s)",
    )
    job.add_argument("--no-wait", action="store_true", help="do not follow the log")
    job.add_argument(
        "line", nargs="+", metavar="COMMAND", help="after --, such as: -- python jobs/distill.py --recipe nano"
    )
    job.set_defaults(run=_submit)
    ui = commands.add_parser("ui", help="show runs, their pictures and the registry in a browser, until Ctrl-C")
    ui.add_argument("--port", type=int, default=5000, help="on 127.0.0.1 (default: %(default)s)")
    ui.set_defaults(run=_ui)
    child = commands.add_parser(
        "exec", help="run a command, such as one of MLflow's, that finds the registry and its files"
    )
    child.add_argument(
        "line",
        nargs="+",
        metavar="COMMAND",
        help=f"after --, such as: -- mlflow models serve -m {DEFAULT_MODEL} --env-manager local",
    )
    child.set_defaults(run=_exec)


def _submit(arguments: argparse.Namespace) -> None:
    from raystill.launch.submit import submit

    print(submit(arguments.address, arguments.runtime_env, arguments.line, follow=not arguments.no_wait))


def _ui(arguments: argparse.Namespace) -> None:
    from raystill.config.home import DIRECTORY
    from raystill.data.ports import listenable
    from raystill.tracking.browser import pages

    uri, port = registry(DIRECTORY), arguments.port
    if not 1 <= port <= 65_535 or not listenable(port):
        raise UserError(f"port {port} is in use or is none; name another one: raystill ui --port 5001")
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop what was started, as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    try:
        with stored(DIRECTORY), pages(uri, port, DIRECTORY) as (address, process):
            print(f"{address} shows runs, pictures and adapters; Ctrl-C stops it", flush=True)
            process.wait()
            raise UserError(f"MLflow's pages stopped by themselves; see {DIRECTORY / 'ui.log'}")
    except KeyboardInterrupt:
        return


def _exec(arguments: argparse.Namespace) -> None:
    """Run a command with the addresses of the registry and its store in its environment, and exit with its status."""
    from raystill.config.home import DIRECTORY

    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # as in an activated environment
    uri = registry(DIRECTORY)
    with stored(DIRECTORY):
        os.environ.update(PATH=beside, MLFLOW_TRACKING_URI=uri)
        try:
            child = subprocess.Popen(arguments.line)
        except OSError as error:
            raise UserError(f"{arguments.line[0]} cannot be run: {error.strerror}") from error
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the child, too, which decides
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda given, _: child.send_signal(given))
        status = child.wait()
    sys.exit(status if status >= 0 else 128 - status)
