"""Metrics and pictures on their way to MLflow: queued by training, sent by a thread, kept while MLflow is away."""

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import requests
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError, ClientError
from mlflow import MlflowClient
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from PIL import Image

from raystill.tracking.tracking import Pace

log = logging.getLogger(__name__)
Item = TypeVar("Item")

# Errors that come out of MLflow when the tracking server (first two) or the object store (others) does not answer.
AWAY = (MlflowException, requests.RequestException, Boto3Error, BotoCoreError, ClientError)
_REJECTED = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # the server answered: asking again cannot help
BATCH = 1000  # MLflow's limit of entities in one call


@dataclass(frozen=True, slots=True)
class Row:
    """The metrics of one step."""

    step: int
    time_ms: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of one step."""

    step: int
    time_ms: int
    name: str
    image: Image.Image


class Lane(Generic[Item]):
    """A bounded queue of one kind of item and the way to send it; one thread fills it, another empties it."""

    def __init__(
        self, send: Callable[[list[Item]], None], *, limit: int, size: Callable[[Item], int], batch: int
    ) -> None:
        self._send, self._limit, self._size, self._batch = send, limit, size, batch
        self._items: deque[Item] = deque()
        self._sending: list[Item] = []  # the batch being sent, not known to have arrived
        self._lock = threading.Lock()
        self.given_up = 0  # items dropped for want of room, or rejected

    def put(self, item: Item) -> bool:
        """Append an item; True where a full batch may be waiting."""
        with self._lock:
            self._items.append(item)
            if len(self._items) > self._limit:
                # Half the resolution keeps the shape of a curve; dropping one end would not.
                kept = list(self._items)[::2]
                self.given_up += len(self._items) - len(kept)
                self._items = deque(kept)
            return len(self._items) * self._size(item) >= self._batch

    def waiting(self) -> list[Item]:
        """The items not yet sent."""
        with self._lock:
            return [*self._sending, *self._items]

    def drain(self) -> bool:
        """Send all items, batch by batch; False where MLflow does not answer, and then unsent items stay queued."""
        while batch := self._take():
            try:
                self._send(batch)
            except AWAY as error:
                if isinstance(error, MlflowException) and error.error_code in _REJECTED:
                    self.given_up += len(batch)
                    log.warning("MLflow rejected %d entries: %s", len(batch), without_password(str(error)))
                    continue
                with self._lock:
                    self._items.extendleft(reversed(batch))
                    self._sending = []
                log.info("MLflow is away: %s", without_password(str(error)))
                return False
        return True

    def _take(self) -> list[Item]:
        taken: list[Item] = []
        room = self._batch
        with self._lock:
            while self._items and (not taken or self._size(self._items[0]) <= room):
                taken.append(self._items.popleft())
                room -= self._size(taken[-1])
            self._sending = taken
        return list(taken)


def without_password(text: str) -> str:
    """Replace user names and passwords in addresses by ***."""
    return re.sub(r"://[^/@\s]+@", "://***@", text)


class Delivery:
    """Sends rows of metrics and pictures of one run, each in order, from its own thread; `close` waits for the rest."""

    def __init__(self, client: MlflowClient, run_id: str, pace: Pace) -> None:
        self._client, self._run_id, self._pace = client, run_id, pace
        self._rows = Lane[Row](self._send_rows, limit=pace.rows, size=lambda row: len(row.values), batch=BATCH)
        self._pictures = Lane[Picture](self._send_pictures, limit=pace.pictures, size=lambda _: 1, batch=1)
        self._wake = threading.Event()
        self._ends_at: float | None = None  # monotonic seconds, once closing
        self._away = False
        self._thread = threading.Thread(target=self._work, name="mlflow-delivery", daemon=True)
        self._thread.start()

    def put(self, item: Row | Picture) -> None:
        """Queue the metrics of one step, or a picture; returns at once."""
        full = self._rows.put(item) if isinstance(item, Row) else self._pictures.put(item)
        if full and not self._away:
            self._wake.set()

    def close(self) -> list[Row]:
        """Send the rest, waiting at most `closing_s`; returns the rows that could not be delivered."""
        self._ends_at = time.monotonic() + self._pace.closing_s
        self._wake.set()
        self._thread.join(self._pace.closing_s)
        rows, pictures = self._rows.waiting(), self._pictures.waiting()
        if dropped := self._rows.given_up + self._pictures.given_up + len(pictures):
            log.warning("%d rows of metrics or pictures never reached MLflow", dropped)
        return rows

    def _work(self) -> None:
        while True:
            if self._ends_at is None:
                self._wake.wait(self._pace.retry_s if self._away else self._pace.age_s)
                self._wake.clear()
            closing, now = self._ends_at is not None, time.monotonic()
            sent = [self._rows.drain(), self._pictures.drain()]  # a store that is away does not hold up the metrics
            self._note(away=not all(sent))
            if self._ends_at is None or not closing:
                continue
            if not self._away or now > self._ends_at:
                return
            time.sleep(min(1.0, self._pace.retry_s))

    def _note(self, *, away: bool) -> None:
        if away != self._away:
            log.warning("MLflow is away; metrics are kept and training goes on" if away else "MLflow is back")
        self._away = away

    def _send_rows(self, rows: list[Row]) -> None:
        metrics = [Metric(name, value, r.time_ms, r.step) for r in rows for name, value in r.values.items()]
        self._client.log_batch(self._run_id, metrics=metrics, synchronous=True)

    def _send_pictures(self, pictures: list[Picture]) -> None:
        for p in pictures:
            self._client.log_image(
                self._run_id, p.image, key=p.name, step=p.step, timestamp=p.time_ms, synchronous=True
            )
