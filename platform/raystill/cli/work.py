"""The commands on what a work prefix holds: what earlier versions left, and what nobody needs."""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from raystill.cli.registry import registry, stored

MIGRATE = """
List what a work prefix, a folder of adapters and the registry hold, and what becomes of each in this version:
found as it is, used by which runs, gone on with, computed anew, or not understood (and left alone).

  raystill migrate s3://raystill/work --dry-run     the demo's, in the embedded store
  raystill migrate s3://raystill/work               the same, and notes old targets at their addresses of today, so
                                                    that runs find them whatever batch sizes and limits they have

Nothing is deleted or moved, and no file is unpickled. Runs find old targets of the very same settings by themselves.
"""

PRUNE = """
List the folders of a work prefix: what each holds and takes, what it was made from, the runs that it belongs to, and
which of them nobody needs: what earlier versions left and no run of this one finds, samples of weights that are gone,
folders of benches, trainings without a checkpoint. Adapters in the registry need no folder. What was written within a
day is needed by whoever writes it, and folders that raystill did not make are left alone.

  raystill prune s3://raystill/work            the demo's, in the embedded store
  raystill prune s3://raystill/work --delete   the same, and deletes what nobody needs

Everything else is found again by a run of the same settings. To be rid of it, too, delete its folder by hand.
"""


def add(commands: Any) -> None:
    """Add the command to those of `raystill`."""
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

    parser = commands.add_parser(
        "prune",
        help="list what a work prefix holds and for whom, and delete what nobody needs",
        description=PRUNE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("work", help="a recipe's `work`: s3://BUCKET/PREFIX or a folder")
    parser.add_argument("--delete", action="store_true", help="delete what nobody needs; without it, list only")
    parser.add_argument("--json", action="store_true", help="for machines")
    parser.set_defaults(run=_prune)


def _prune(arguments: argparse.Namespace) -> None:
    from raystill.config.home import DIRECTORY
    from raystill.data.store import open_store
    from raystill.run.prune import as_json, folders, remove, size, table

    with stored(DIRECTORY):
        work = open_store(arguments.work)
        work.check()
        rows = folders(work)
        print(as_json(rows) if arguments.json else table(rows) if rows else f"there is nothing at {arguments.work}")
        if arguments.delete:
            spare = [row for row in rows if row.unneeded]
            for row in spare:
                remove(work, row)
            print(f"deleted {len(spare)} folders, {size(sum(row.size for row in spare))}", file=sys.stderr)


def _migrate(arguments: argparse.Namespace) -> None:
    from raystill.config.home import DIRECTORY
    from raystill.data.store import open_store
    from raystill.run.migrate import Held, as_json, held, held_adapters, table
    from raystill.tracking import listing

    rows = list(held_adapters(arguments.adapters or DIRECTORY / "adapters"))
    if "MLFLOW_TRACKING_URI" in os.environ or (DIRECTORY / "mlflow.db").exists():
        rows += [Held(*row) for row in listing.held(registry(DIRECTORY))]
    if arguments.work is not None:
        with stored(DIRECTORY):
            work = open_store(arguments.work)
            work.check()
            rows += held(work, write=not arguments.dry_run)
    print(as_json(rows) if arguments.json else table(rows) if rows else "there is nothing: name a work prefix")
