"""The command line: submit jobs, list and fetch adapters, draw with them, and merge them into pipelines."""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystill.config.errors import UserError
from raystill.launch.command import guarded

MIGRATE = """
List what a work prefix, a folder of adapters and the registry hold, and what becomes of each in this version:
found as it is, used by which runs, gone on with, computed anew, or not understood (and left alone).

  raystill migrate s3://raystill/work --dry-run     the demo's, in the embedded store
  raystill migrate s3://raystill/work               the same, and notes old targets at their addresses of today, so
                                                    that runs find them whatever batch sizes and limits they have

Nothing is deleted or moved, and no file is unpickled. Runs find old targets of the very same settings by themselves.
"""
DEFAULT_MODEL = "models:/nano-rayflow@champion"


def main() -> None:
    """Entry point of `raystill`."""
    sys.exit(guarded(_main))


def _main() -> None:
    arguments = _parser().parse_args()
    arguments.run(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="raystill", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    pull = commands.add_parser("pull", help="fetch an adapter from the registry and check its digests")
    pull.add_argument("model", help="models:/NAME@champion, models:/NAME@candidate or models:/NAME/VERSION")
    pull.add_argument("--to", type=Path, help="an empty directory; default: a cache")
    pull.set_defaults(run=_pull)
    sample = commands.add_parser("sample", help="draw pictures with an adapter")
    sample.add_argument("caption", nargs="+", help='what to draw, such as "a red heart"; one row each')
    sample.add_argument(
        "--model", default=DEFAULT_MODEL, help="a registry URI, or a directory that `pull` wrote (default: %(default)s)"
    )
    sample.add_argument("--steps", type=int, help="network calls per picture; default: the adapter's own")
    sample.add_argument("--force", action="store_true", help="draw in a number of steps that it was not trained for")
    sample.add_argument("--count", type=int, default=4, help="pictures per caption (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="of the starts (default: %(default)s)")
    sample.add_argument("--base", type=Path, help="directory of the base pipeline; default: where the adapter says")
    sample.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file to write (default: %(default)s)")
    sample.set_defaults(run=_sample)
    merge = commands.add_parser("merge", help="write a pipeline that has an adapter's weights in its own")
    merge.add_argument("model", help="a registry URI, or a directory that `pull` wrote")
    merge.add_argument("--onto", type=Path, help="another fine-tune of the adapter's base; default: the base itself")
    merge.add_argument("--out", type=Path, required=True, help="a new directory, in diffusers' format")
    merge.set_defaults(run=_merge)
    models = commands.add_parser("models", help="list the registry's adapters with their figures")
    models.add_argument("name", nargs="?", help="one model, with all its versions; default: every model's newest")
    models.set_defaults(run=_models)
    _add_migrate(commands)
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
    return parser


def _add_migrate(commands: Any) -> None:
    parser = commands.add_parser(
        "migrate",
        help="list what earlier versions left, and what becomes of it",
        description=MIGRATE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", nargs="?", help="a recipe's `work`: s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--adapters", type=Path, help="a folder of adapters (default: that of runs typed here)")
    parser.add_argument("--dry-run", action="store_true", help="list only; without it, old targets are noted, too")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_migrate)


def _pull(arguments: argparse.Namespace) -> None:
    from raystill.models.artifact import verify
    from raystill.models.card import describe

    directory = _fetch(arguments.model, arguments.to)
    print(f"{directory}\n{describe(verify(directory))}")


def _sample(arguments: argparse.Namespace) -> None:
    from raystill.evaluation.pictures import grid
    from raystill.models.adapter import Adapter

    if arguments.count < 1:
        raise UserError(f"--count is {arguments.count}; write 1 or more pictures per caption, such as --count 4")
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}; write 1 or more, such as --steps 4")
    adapter = Adapter(_directory(arguments.model), arguments.base)
    captions = [c for c in arguments.caption for _ in range(arguments.count)]
    pictures = adapter.draw(captions, arguments.steps, arguments.seed, force=arguments.force).numpy()
    rows = [list(pictures[i : i + arguments.count]) for i in range(0, len(captions), arguments.count)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, arguments.caption, [""] * arguments.count, scale=3).save(arguments.out)
    print(arguments.out)


def _merge(arguments: argparse.Namespace) -> None:
    from raystill.models.merging import merge_adapter

    print(merge_adapter(_directory(arguments.model), arguments.onto, arguments.out))


def _directory(model: str) -> Path:
    """The directory of an adapter: the given one, or one that is fetched from the registry."""
    return Path(model) if Path(model).is_dir() else _fetch(model, None)


def _models(arguments: argparse.Namespace) -> None:
    from raystill.launch.services import DIRECTORY
    from raystill.tracking.listing import listing

    print(listing(_registry(DIRECTORY), arguments.name))


def _migrate(arguments: argparse.Namespace) -> None:
    from raystill.data.store import check, open_store
    from raystill.launch.services import DIRECTORY
    from raystill.run.migrate import Held, as_json, held, held_adapters, table
    from raystill.tracking import listing
    from raystill.tracking.runs import tracking_uri

    rows = list(held_adapters(arguments.adapters or DIRECTORY / "adapters"))
    if "MLFLOW_TRACKING_URI" in os.environ or (DIRECTORY / "mlflow.db").exists():
        rows += [Held(*row) for row in listing.held(tracking_uri(DIRECTORY))]
    if arguments.work is not None:
        with _store(DIRECTORY):
            work = open_store(arguments.work)
            check(work)
            rows += held(work, write=not arguments.dry_run)
    print(as_json(rows) if arguments.json else table(rows) if rows else "there is nothing: name a work prefix")


def _submit(arguments: argparse.Namespace) -> None:
    from raystill.launch.submit import submit

    print(submit(arguments.address, arguments.runtime_env, arguments.line, follow=not arguments.no_wait))


def _fetch(model: str, to: Path | None) -> Path:
    """Pull an adapter from the tracking server of the environment, or from the one that runs keep under .raystill/."""
    from raystill.launch.services import DIRECTORY
    from raystill.tracking.pull import pull

    uri = _registry(DIRECTORY)
    with _store(DIRECTORY):
        return pull(model, to, tracking_uri=uri)


def _ui(arguments: argparse.Namespace) -> None:
    from raystill.data.ports import listenable
    from raystill.launch.services import DIRECTORY
    from raystill.tracking.browser import pages

    uri, port = _registry(DIRECTORY), arguments.port
    if not 1 <= port <= 65_535 or not listenable(port):
        raise UserError(f"port {port} is in use or is none; name another one: raystill ui --port 5001")
    for number in (signal.SIGTERM, signal.SIGHUP):  # stop what was started, as Ctrl-C does
        signal.signal(number, signal.default_int_handler)
    try:
        with _store(DIRECTORY), pages(uri, port, DIRECTORY) as (address, process):
            print(f"{address} shows runs, pictures and adapters; Ctrl-C stops it", flush=True)
            process.wait()
            raise UserError(f"MLflow's pages stopped by themselves; see {DIRECTORY / 'ui.log'}")
    except KeyboardInterrupt:
        return


def _exec(arguments: argparse.Namespace) -> None:
    """Run a command with the addresses of the registry and its store in its environment, and exit with its status."""
    from raystill.launch.services import DIRECTORY

    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # as in an activated environment
    uri = _registry(DIRECTORY)
    with _store(DIRECTORY):
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


def _registry(directory: Path) -> str:
    """Address of the environment's tracking server, or of the file that runs keep; UserError where there is neither."""
    from raystill.tracking.runs import tracking_uri

    if "MLFLOW_TRACKING_URI" not in os.environ and not (directory / "mlflow.db").exists():
        raise UserError(
            f"there is no registry at {directory}/mlflow.db: run `make demo` first, "
            "or set MLFLOW_TRACKING_URI to a server, or RAYSTILL_HOME to where submitted jobs keep it (~/.raystill)"
        )
    return tracking_uri(directory)


@contextmanager
def _store(directory: Path) -> Iterator[None]:
    """Start the embedded object store where the registry's files lie in one and no other is configured."""
    from raystill.launch.services import EMBEDDED, object_store

    embedded = (directory / EMBEDDED).is_dir() and not any(
        k in os.environ for k in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
    )
    with object_store("embedded" if embedded else "environment", directory):
        yield


if __name__ == "__main__":
    main()
