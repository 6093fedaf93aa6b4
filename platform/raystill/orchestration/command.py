"""What every command has in common: errors without tracebacks, Ctrl-C that says how to go on, quiet libraries."""

import argparse
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raystill.config.digest import digest
from raystill.config.errors import UserError
from raystill.config.overrides import parse_assignments, paths


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """What was typed."""

    recipe: str
    changes: dict[str, Any]
    local: bool
    show: bool


def arguments(description: str | None, recipe: str) -> Given:
    """Read the arguments that every job takes; `recipe` is the default one."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe",
        default=recipe,
        help="NAME[:FUNCTION] of a shipped recipe, or FILE.py[:FUNCTION] (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a setting by its dotted path; repeatable",
    )
    parser.add_argument("--local", action="store_true", help="run in this process: one device, plain torch, no Ray")
    parser.add_argument("--show", action="store_true", help="print the resolved settings with their paths, and stop")
    typed = parser.parse_args()
    return Given(recipe=typed.recipe, changes=parse_assignments(typed.set), local=typed.local, show=typed.show)


def show(run: Any) -> None:
    """Print every setting as `--set` takes it, and the digest of all."""
    for path, value in paths(run).items():
        print(f"{path}={value}")
    print(f"# digest {digest(run)}")


def guarded(main: Callable[[], None]) -> int:
    """Run a command; exit status 2 with a message for bad input, 130 for Ctrl-C after everything that it started has
    stopped.
    """
    _quiet()
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = shlex.join([Path(sys.executable).name, *sys.argv])
        print(
            f"\nStopped. Finished stages and checkpoints are kept; go on with the same command:\n  {again}",
            file=sys.stderr,
        )
        return 130
    return 0


def quiet_libraries() -> None:
    """Warnings only from libraries that tell how they found their credentials and endpoints."""
    for name in ("botocore", "boto3", "s3transfer", "alembic", "mlflow", "httpx", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _quiet() -> None:
    """Progress and results on the terminal, nothing else; must come before libraries read their environment."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
