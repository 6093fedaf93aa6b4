"""Signals to this very process while a training would run."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raystill.data.local import LocalStore
from raystill.launch.stopping import SIGNALS, STOP, asked_to_stop, recorded, saving


def signalled(store: LocalStore, *numbers: signal.Signals) -> list[bool]:
    """Send signals to this process one after the other; gives what a training saw after each."""
    seen = []
    with saving(store):
        for number in numbers:
            os.kill(os.getpid(), number)
            seen.append(asked_to_stop(store))
    return seen


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_asks_for_a_checkpoint_and_ends_the_job_after_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    store, before = LocalStore(uri=str(tmp_path)), [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(KeyboardInterrupt) as stopped:
        signalled(store, number)
    assert stopped.traceback[-1].name == "saving"  # at the end
    assert asked_to_stop(store)
    assert [signal.getsignal(n) for n in SIGNALS] == before


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    with pytest.raises(KeyboardInterrupt) as stopped:
        signalled(store, signal.SIGTERM, signal.SIGINT)
    assert stopped.traceback[-1].name == "ask"  # inside, not at the end


def test_what_an_earlier_run_was_asked_is_forgotten(tmp_path: Path) -> None:
    store = LocalStore(uri=str(tmp_path))
    store.write(STOP, b"")
    with saving(store):
        assert not asked_to_stop(store)


@pytest.mark.parametrize("asked", [False, True])
def test_a_training_that_was_asked_to_stop_closes_its_record_as_interrupted(tmp_path: Path, *, asked: bool) -> None:
    store = LocalStore(uri=str(tmp_path))
    ended: list[Any] = []

    @contextmanager
    def record() -> Iterator[Any]:
        try:
            yield ended
        except BaseException as error:
            ended.append(type(error).__mro__)
            raise

    with recorded(record, store, 3) as opened:
        assert opened is not None
        if asked:
            store.write(STOP, b"")
    assert [KeyboardInterrupt in kinds for kinds in ended] == [True] * asked
    with recorded(None, store, 3) as nothing:
        assert nothing is None


def test_signals_are_left_to_the_main_thread(tmp_path: Path) -> None:
    def other() -> None:
        with saving(LocalStore(uri=str(tmp_path))):
            found.append([signal.getsignal(n) for n in SIGNALS])

    found: list[object] = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert found == [[signal.getsignal(n) for n in SIGNALS]]
