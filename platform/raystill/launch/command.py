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
from raystill.config.extras import explained

# Lines of Ray's processes that tell its users nothing: the first is repeated every second where there is no dashboard.
CHATTER = "Failed to query Ray Train Controller actor state|Set ray log level from environment variable"
LEVEL = "RAYSTILL_LOG"  # environment variable
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
    except ModuleNotFoundError as error:
        missing = explained(error)
        if missing is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        return 2
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
    return shlex.join([shown(Path(sys.executable)), shown(Path(sys.argv[0])), *sys.argv[1:]])


def shown(path: Path) -> str:
    """A path as it is typed here: relative to the current directory where it lies below."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def quiet_libraries() -> None:
    """Let libraries that tell how they found their credentials and endpoints log warnings only."""
    # Which every start of a cluster of this machine alone would log, as a warning, where a token has been made once.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    for name in ("botocore", "boto3", "s3transfer", "alembic", "mlflow", "httpx", "ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.WARNING)


def worker_log(directory: Path, name: str, rank: int) -> None:
    """Write the messages of a training's worker to DIRECTORY/NAME-RANK.log, and show those from warnings on with the
    rank before them.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file, shown = logging.FileHandler(directory / f"{name}-{rank}.log"), logging.StreamHandler()
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    shown.setFormatter(logging.Formatter(f"rank {rank}: %(message)s"))
    shown.setLevel(logging.WARNING)
    logging.basicConfig(level=_level(), handlers=[file, shown], force=True)
    quiet_libraries()


def _level() -> str:
    """The level from which messages count: RAYSTILL_LOG, DEBUG to ERROR, or INFO where it says nothing known."""
    asked = os.environ.get(LEVEL, "").upper()
    return asked if asked in ("DEBUG", "INFO", "WARNING", "ERROR") else "INFO"


def _quiet() -> None:
    """Show only progress and results on the terminal; must be called before libraries read their environment."""
    logging.basicConfig(level=_level(), format="%(message)s")
    quiet_libraries()
    warnings.filterwarnings("ignore", category=FutureWarning)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", CHATTER)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
