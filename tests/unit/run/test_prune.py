"""A work prefix's folders are listed with what they take, and only what nobody needs is deleted."""

import json
import os
import time
from pathlib import Path

import pytest

from raystill.config.digest import digest
from raystill.data.derive import Shard, Source, finish, place
from raystill.data.local import LocalStore
from raystill.data.objects import Entry
from raystill.run.prune import SETTLED_S, Folder, as_json, folders, remove, size, table

SOURCE = Source(LocalStore(uri="x"), (Entry(key="000002.tar", size=1234, etag="aa"),))
GONE = "of weights that are not here any more"


@pytest.fixture
def work(tmp_path: Path) -> LocalStore:
    """A work prefix with something that nobody needs, of every kind, beside something that a run finds."""
    store = LocalStore(uri=str(tmp_path / "work"))
    for known in ({"stage": "targets"}, {"stage": "student samples", "adapter": "deleted"}):
        kept = place(store, str(known["stage"]).replace(" ", "-"), SOURCE.identity(**known))
        kept.write("000002.tar", b"shard")
        finish(kept, SOURCE.identity(**known), [Shard(key="000002.tar", count=5)], 0.0)
    old = {"stage": "teacher samples"}
    body = {"identity": old, "shards": [{"key": "000002.tar", "count": 7, "rejected": []}]}
    store.write(f"teacher-samples/{digest(old)}/index.json", json.dumps(body).encode())
    store.write("checkpoints/1111111111111111/identity.json", b'{"task": "student", "identity": {}}')
    store.write("checkpoints/1111111111111111/latest.json", b'{"step": 8}')
    store.write("checkpoints/1111111111111111/runs/0123456789abcdef", b"my/run")
    store.write("checkpoints/2222222222222222/identity.json", b'{"task": "student", "identity": {}}')
    store.write("checkpoints/3333333333333333/identity.json", b"half of an iden")
    store.write("checkpoints/4444444444444444/latest.json", b'{"step": 8}')
    store.write("checkpoints/4444444444444444/.latest.json.part", b"{")
    store.write("bench/bench-1/latest.json", b'{"step": 8}')
    store.write("bench/data/pictures.tar", b"somebody's")
    store.write("checkpoints/sd15/model.safetensors", b"somebody's")
    store.write("thesis/chapter/1.tex", b"words")
    store.write("thesis/data/index.json", b'{"identity": {"trained": "gone"}}')
    for number, odd in enumerate(('{"method": "x"}', '{"targets": "x"}', '{"task": null}', "3")):
        store.write(f"targets/555555555555555{number}/index.json", f'{{"identity": {odd}, "shards": []}}'.encode())
    yesterday = time.time() - 2 * SETTLED_S
    for file in (tmp_path / "work").rglob("*.*"):
        os.utime(file, (yesterday, yesterday))
    return store


def test_what_was_written_within_a_day_is_needed(work: LocalStore) -> None:
    before = {row.place for row in folders(work) if row.unneeded}
    for at in before:
        work.write(f"{at}/fresh", b"")
    assert before
    assert not [row for row in folders(work) if row.unneeded]


def test_only_what_nobody_needs_is_deleted(work: LocalStore) -> None:
    rows = {row.place: row for row in folders(work)}
    unneeded = {row.place.partition("/")[0]: row.unneeded for row in rows.values() if row.unneeded}
    assert unneeded == {
        "bench": "a bench is over when it ends",
        "checkpoints": "a training that was stopped before its first checkpoint",
        "student-samples": GONE,
        "teacher-samples": "of an earlier version; no run of this one finds it",
    }
    assert rows["checkpoints/1111111111111111"].runs == ["my/run"]
    for row in rows.values():
        if row.unneeded:
            remove(work, row)
    assert {row.place for row in folders(work)} == {row.place for row in rows.values() if not row.unneeded}
    assert work.read("thesis/chapter/1.tex") == b"words"
    assert work.read("bench/data/pictures.tar") == work.read("checkpoints/sd15/model.safetensors") == b"somebody's"


def test_tables_and_json(work: LocalStore) -> None:
    rows = folders(work)
    lines = table(rows).splitlines()
    assert lines[0].split() == ["folder", "size", "holds", "made", "from", "runs", "nobody", "needs", "it:"]
    assert lines[-1].startswith(f"{len(rows)} folders, ")
    assert "nobody needs 4 of them" in lines[-1]
    assert [Folder(**row) for row in json.loads(as_json(rows))] == rows


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**40, "5.0 TiB")])
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
