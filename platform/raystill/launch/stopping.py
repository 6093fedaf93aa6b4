"""What Ctrl-C does, and SIGTERM as clusters send it: a training saves a checkpoint first; all else ends at once."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

from raystill.data.store import Store

log = logging.getLogger(__name__)
STOP = "stop"  # key in the checkpoint store: the training that writes there saves, and trains no further
SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def saving(checkpoints: Store) -> Iterator[None]:
    """While this context lasts, the first signal asks the training that writes to `checkpoints` to save and end; a
    second signal raises KeyboardInterrupt. KeyboardInterrupt at the end, too, where there was a signal.
    """
    if current_thread() is not main_thread():  # signals are the main thread's, which decides for this one
        yield
        return
    asked = False

    def ask(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        log.info("%s: saving a checkpoint first; once more to stop at once", signal.Signals(number).name)
        checkpoints.write(STOP, b"")

    checkpoints.delete(STOP)
    with handled(ask):
        yield
    if asked:
        raise KeyboardInterrupt


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let `handler` take SIGINT and SIGTERM inside this context."""
    before = [signal.signal(number, handler) for number in SIGNALS]
    try:
        yield
    finally:
        for number, old in zip(SIGNALS, before, strict=True):
            signal.signal(number, old)


def asked_to_stop(checkpoints: Store) -> bool:
    """Whether the driver wants the training that writes to `checkpoints` to save and end."""
    return checkpoints.exists(STOP)
