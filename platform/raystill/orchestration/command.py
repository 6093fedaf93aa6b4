"""What every command has in common: errors without tracebacks, Ctrl-C that says how to go on, quiet libraries."""

import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from raystill.config.errors import UserError


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
