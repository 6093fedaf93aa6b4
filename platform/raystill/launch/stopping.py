"""What Ctrl-C does, and SIGTERM as clusters send it: a training saves a checkpoint first; all else ends at once."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from threading import current_thread, main_thread
from types import FrameType

from raystill.data.store import Store
from raystill.training.task import Recorder, last_step

log = logging.getLogger(__name__)
STOP = "stop"  # key in the checkpoint store: the training that writes there saves, and trains no further
MakeRecorder = Callable[[], AbstractContextManager[Recorder]]  # picklable: it is opened where rank 0 runs
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


class _InterruptedError(KeyboardInterrupt):
    """A training was asked to stop."""


@contextmanager
def recorded(recorder: MakeRecorder | None, checkpoints: Store, end: int) -> Iterator[Recorder | None]:
    """The opened recorder of a training that writes to `checkpoints` until a step; where it was asked to stop before,
    the recorder is closed as interrupted.
    """
    if recorder is None:
        yield None
        return
    with suppress(_InterruptedError), recorder() as opened:
        yield opened
        if asked_to_stop(checkpoints) and last_step(checkpoints) < end:
            raise _InterruptedError


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
