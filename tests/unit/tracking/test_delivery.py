"""What is put into a delivery arrives, in order, also after the server was away."""

import sqlite3
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST

from raystill.tracking.delivery import Lane
from raystill.tracking.runs import TrackedRun
from raystill.tracking.tracking import Pace, Tracking


class Door:
    """A receiver that can be shut."""

    def __init__(self) -> None:
        self.open, self.received, self.error = True, list[list[int]](), MlflowException("away")

    def take(self, batch: list[int]) -> None:
        if not self.open:
            raise self.error
        self.received.append(batch)


def lane(door: Door, limit: int = 100) -> Lane[int]:
    return Lane[int](door.take, limit=limit, size=lambda _: 2, batch=6)


def test_batches_hold_as_much_as_one_call_may() -> None:
    door = Door()
    queue = lane(door)
    assert [queue.put(i) for i in range(4)] == [False, False, True, True]
    assert queue.drain()
    assert door.received == [[0, 1, 2], [3]]


def test_nothing_is_lost_and_order_kept_while_the_server_is_away() -> None:
    door = Door()
    queue = lane(door)
    door.open = False
    for i in range(4):
        queue.put(i)
    assert not queue.drain()
    queue.put(4)
    assert queue.waiting() == [0, 1, 2, 3, 4]
    door.open = True
    assert queue.drain()
    assert door.received == [[0, 1, 2], [3, 4]]
    assert queue.given_up == 0


def test_a_long_absence_costs_resolution_not_memory() -> None:
    queue = lane(Door(), limit=10)
    for i in range(1000):
        queue.put(i)
    kept = queue.waiting()
    assert len(kept) <= 10
    assert kept[0] == 0
    assert kept == sorted(kept)
    assert queue.given_up + len(kept) == 1000


def test_what_the_server_rejects_is_not_offered_again() -> None:
    door = Door()
    door.open, door.error = False, MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
    queue = lane(door)
    queue.put(0)
    assert queue.drain()
    assert queue.waiting() == []
    assert queue.given_up == 1


def test_what_is_being_sent_still_waits_until_it_has_arrived() -> None:
    waiting: list[list[int]] = []
    queue = Lane[int](lambda _: waiting.append(queue.waiting()), limit=5, size=lambda _: 1, batch=2)
    for i in range(3):
        queue.put(i)
    assert queue.drain()
    assert waiting == [[0, 1, 2], [2]]
    assert queue.waiting() == []


@pytest.mark.parametrize("error_code", [INTERNAL_ERROR, RESOURCE_DOES_NOT_EXIST])
def test_passwords_stay_out_of_the_log(caplog: pytest.LogCaptureFixture, error_code: int) -> None:
    door = Door()
    door.open = False
    door.error = MlflowException("no answer from postgresql://me:hidden@db/x", error_code=error_code)
    queue = lane(door)
    queue.put(0)
    with caplog.at_level("INFO"):
        queue.drain()
    assert "postgresql://***@db/x" in caplog.text
    assert "hidden" not in caplog.text


def test_other_errors_are_not_swallowed() -> None:
    door = Door()
    door.open = False
    queue = Lane[int](lambda batch: batch.index(99), limit=5, size=lambda _: 1, batch=2)  # type: ignore[arg-type]
    queue.put(0)
    with pytest.raises(ValueError, match="99 is not in list"):
        queue.drain()


def test_a_database_that_is_locked_for_a_while_gets_all_metrics_in_the_end(
    uri: str, client: MlflowClient, experiment: str, mlflow_home: Path
) -> None:
    pace = Pace(age_s=0.05, retry_s=0.05, closing_s=60.0)
    with TrackedRun(Tracking(uri=uri, experiment=experiment, name="run", pace=pace), {"seed": 1}) as run:
        lock = sqlite3.connect(mlflow_home / "mlflow.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        started = time.monotonic()
        for step in range(50):
            run.metrics(step, {"loss/student": float(step)})
        assert time.monotonic() - started < 1.0  # training did not wait
        time.sleep(0.5)
        lock.execute("ROLLBACK")
        lock.close()
    assert [m.step for m in client.get_metric_history(run.run_id, "loss/student")] == list(range(50))
