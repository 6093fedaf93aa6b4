"""What every command has in common: errors without tracebacks, Ctrl-C that says how to go on, quiet libraries."""

import errno
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from raystill.config.errors import UserError

# Lines of Ray's processes that tell its users nothing: the first is repeated every second where there is no dashboard.
CHATTER = "Failed to query Ray Train Controller actor state|Set ray log level from environment variable"
KEPT = "Finished stages and checkpoints are kept; go on with the same command:"


def guarded(main: Callable[[], None], stopped: str = KEPT) -> int:
    """Run a command and return its exit status: 0, 2 with a message for bad input or a full disk, or 130 for Ctrl-C or
    SIGTERM, after everything that the command started has stopped; `stopped` is the message that says what remains.
    """
    _quiet()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. {stopped}\n  {_again()}", file=sys.stderr)
        return 130
    except (OSError, SafetensorError) as error:
        if not _no_room(error):
            raise
        where = (error.filename if isinstance(error, OSError) else None) or f"a file below {Path.cwd()}"
        print(f"error: {where}: the disk or quota is full. Free space, then type again: {_again()}", file=sys.stderr)
        return 2
    return 0


def _no_room(error: OSError | SafetensorError) -> bool:
    full = {errno.ENOSPC, errno.EDQUOT}
    if isinstance(error, OSError):
        return error.errno in full
    return any(os.strerror(number) in str(error) for number in full)


def _again() -> str:
    """The command line that was typed, as it can be typed again."""
    here = Path.cwd()
    python, script = (Path(part) for part in (sys.executable, sys.argv[0]))
    shown = [str(p.relative_to(here)) if p.is_relative_to(here) else str(p) for p in (python, script)]
    return shlex.join([*shown, *sys.argv[1:]])


def quiet_libraries() -> None:
    """Let libraries that tell how they found their credentials and endpoints log warnings only."""
    for name in ("botocore", "boto3", "s3transfer", "alembic", "mlflow", "httpx", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _quiet() -> None:
    """Show only progress and results on the terminal; must be called before libraries read their environment."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", CHATTER)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
