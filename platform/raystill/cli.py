"""The command line: fetch adapters from the registry and draw with them."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raystill.config.errors import UserError
from raystill.orchestration.command import guarded

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
    sample.add_argument("--count", type=int, default=4, help="pictures per caption (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="of the starts (default: %(default)s)")
    sample.add_argument("--base", type=Path, help="directory of the base pipeline; default: where the adapter says")
    sample.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file to write (default: %(default)s)")
    sample.set_defaults(run=_sample)
    return parser


def _pull(arguments: argparse.Namespace) -> None:
    from raystill.models.adapter import describe
    from raystill.models.artifact import verify

    directory = _fetch(arguments.model, arguments.to)
    print(f"{directory}\n{describe(verify(directory))}")


def _sample(arguments: argparse.Namespace) -> None:
    from raystill.evaluation.pictures import grid
    from raystill.models.adapter import Adapter

    directory = Path(arguments.model) if Path(arguments.model).is_dir() else _fetch(arguments.model, None)
    adapter = Adapter(directory, arguments.base)
    captions = [c for c in arguments.caption for _ in range(arguments.count)]
    pictures = adapter.draw(captions, arguments.steps, arguments.seed).numpy()
    rows = [list(pictures[i : i + arguments.count]) for i in range(0, len(captions), arguments.count)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, arguments.caption, [""] * arguments.count, scale=3).save(arguments.out)
    print(arguments.out)


def _fetch(model: str, to: Path | None) -> Path:
    """Pull from the tracking server of the environment, or from the one that runs keep under .raystill/."""
    from raystill.orchestration.launch import DIRECTORY
    from raystill.tracking.pull import pull
    from raystill.tracking.runs import tracking_uri

    if "MLFLOW_TRACKING_URI" not in os.environ and not (DIRECTORY / "mlflow.db").exists():
        raise UserError(
            f"there is no registry at {DIRECTORY}/mlflow.db: run `make demo` first, "
            "or set MLFLOW_TRACKING_URI to a server"
        )
    with _store(DIRECTORY):
        return pull(model, to, tracking_uri=tracking_uri(DIRECTORY))


@contextmanager
def _store(directory: Path) -> Iterator[None]:
    """Start the embedded object store where the registry's files lie in one and no other is configured."""
    from raystill.orchestration.services import EMBEDDED, object_store

    embedded = (directory / EMBEDDED).is_dir() and not any(
        k in os.environ for k in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
    )
    with object_store("embedded" if embedded else "environment", directory):
        yield


if __name__ == "__main__":
    main()
