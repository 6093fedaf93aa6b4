"""What earlier versions left is listed with what becomes of it; nothing is deleted."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from raystill.cli.main import main
from raystill.config.digest import digest
from raystill.config.overrides import override
from raystill.data.derive import Shard as Derived
from raystill.data.derive import Source, finish, place
from raystill.data.local import LocalStore
from raystill.data.objects import Entry
from raystill.recipes.resolve import resolve
from raystill.run.adoption import ADOPTED, adopted
from raystill.run.migrate import AS_IS, Held, as_json, held, held_adapters, table
from raystill.run.settings import Run, Targets

SOURCE = Source(
    LocalStore(uri="x"),
    (Entry(key="000002.tar", size=1234, etag="aa"), Entry(key="000003.tar", size=5678, etag="bb")),
)
# What version 57a9588 wrote for the recipe lcm_nano, where it put it.
READING = {
    "kind": "Reading", "picture_size": 32, "channels": 3, "allow_empty_caption": False, "drop_captions": 0.0,
    "max_bad_fraction": 0.05,
}  # fmt: skip
THEN: dict[str, Any] = {
    **SOURCE.contents, "stage": "targets", "teacher": "11cc13546aa4a210", "reading": READING,
    "targets": {
        "kind": "Targets", "shards": None, "seed": 0, "batch_size": 64, "precision": "float32",
        "estimator": {"kind": "Encoded"},
    },
}  # fmt: skip


@pytest.fixture
def work(tmp_path: Path) -> LocalStore:
    """A work prefix with one thing of every kind."""
    store = LocalStore(uri=str(tmp_path / "work"))
    shards = [Derived(key="000002.tar", count=5)]
    known = SOURCE.identity(stage="targets", targets=Targets(seed=5))
    finish(place(store, "targets", known), known, shards, 0.0)
    for stage, then in (("targets", THEN), ("teacher-samples", {"stage": "teacher samples"}),
                        ("targets", {**THEN, "targets": {"kind": "Unheard"}})):  # fmt: skip
        body = {"identity": then, "shards": [{"key": "000002.tar", "count": 7, "rejected": []}]}
        store.write(f"{stage}/{digest(then)}/index.json", json.dumps(body).encode())
    store.write("targets/0000000000000000/index.json", b'{"identity": {}, "shards": []}')
    store.write("targets/1111111111111111/000002.json", b"{}")
    store.write("targets/2222222222222222/index.json", b"half of an ind")
    store.write("checkpoints/3333333333333333/latest.json", b'{"step": 9}')
    store.write("checkpoints/4444444444444444/latest.json", b'{"step": 8}')
    store.write("checkpoints/4444444444444444/identity.json", b'{"task": "student", "identity": {}}')
    store.write("checkpoints/5555555555555555/latest.json", b'{"step": ')
    store.write("thesis/chapter/1.tex", b"")
    return store


def rows(work: LocalStore, *, write: bool = False) -> dict[str, Held]:
    return {row.place: row for row in held(work, write=write)}


def lcm(**changes: Any) -> Run:
    run: Run = override(resolve("lcm_nano"), {name.replace("__", "."): value for name, value in changes.items()})
    return run


def found(work: LocalStore, run: Run) -> str:
    """Where a run's targets are."""
    of = {"stage": "targets", "teacher": "11cc13546aa4a210", "reading": run.reading, "targets": run.targets}
    return adopted(work, "targets", SOURCE, of)[0].uri


def test_everything_is_listed_with_what_becomes_of_it(work: LocalStore) -> None:
    before = {entry.key: entry.etag for entry in work.list()}
    listed = rows(work)
    assert {entry.key: entry.etag for entry in work.list()} == before  # nothing was written
    assert len(listed) == 11
    new = SOURCE.identity(stage="targets", targets=Targets(seed=5))
    at = place(work, "targets", new).uri.removeprefix(f"{work.uri}/")
    assert (listed[at].holds, listed[at].becomes) == ("5 samples", AS_IS)
    old = listed["targets/7e750feeb72ed45e"]
    assert old.holds == "7 samples by an earlier version"
    assert old.becomes == "used by runs with targets.estimator=Encoding"
    samples = listed[f"teacher-samples/{digest({'stage': 'teacher samples'})}"]
    assert samples.becomes.startswith("computed anew; to be rid of it: rm -r ")
    assert listed["targets/1111111111111111"].holds == "unfinished"
    damaged = ("targets/0000000000000000", "targets/2222222222222222", "checkpoints/5555555555555555")
    for name in (*damaged, "thesis/chapter"):
        assert listed[name].becomes.startswith("not understood")
    assert "goes on with it where none of its parts was revised" in listed["checkpoints/3333333333333333"].becomes
    assert listed["checkpoints/4444444444444444"].holds == "training of the student, step 8"


def test_noted_targets_are_found_whatever_knobs_have_changed(work: LocalStore) -> None:
    run = lcm(targets__batch_size=16, reading__max_bad_fraction=0.5)
    old = f"{work.uri}/targets/7e750feeb72ed45e"
    assert found(work, run) != old  # its address of then had counted them
    rows(work, write=True)
    assert found(work, run) == old
    assert found(work, lcm(targets__seed=1)) != old
    again = rows(work, write=True)
    (note,) = [row for row in again.values() if row.holds == "note"]
    assert note.becomes == "leads to targets/7e750feeb72ed45e"
    assert work.exists(f"{note.place}/{ADOPTED}")


def test_targets_of_an_earlier_revision_are_not_noted(work: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Targets, "revision", 2, raising=False)
    listed = rows(work, write=True)
    assert listed["targets/7e750feeb72ed45e"].becomes == (
        "computed anew, since Targets (revision 2) makes other numbers now"
    )
    assert not [entry for entry in work.list() if entry.key.endswith(ADOPTED)]


def test_adapters_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "0123").mkdir()
    (tmp_path / "0123" / "adapter.json").write_text('{"format": 9}')
    (row,) = held_adapters(tmp_path)
    assert row.becomes.startswith("not understood, left alone: ")
    assert "has format 9" in row.becomes
    assert not list(held_adapters(tmp_path / "nowhere"))


def test_rows_for_people_and_machines() -> None:
    every = [Held("a/b", "7 samples", "found"), Held("c", "note", "leads to a/b")]
    assert table(every).splitlines()[1:] == ["a/b    7 samples  found", "c      note       leads to a/b"]
    assert json.loads(as_json(every))[1] == {"place": "c", "holds": "note", "becomes": "leads to a/b", "unneeded": ""}


def test_the_command_lists_and_writes_only_where_asked(
    work: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for flags, notes in ((["--dry-run", "--json"], 0), ([], 1)):
        monkeypatch.setattr(sys, "argv", ["raystill", "migrate", work.uri, "--adapters", str(tmp_path), *flags])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown = capsys.readouterr().out
        assert "targets/7e750feeb72ed45e" in shown
        assert len([entry for entry in work.list() if entry.key.endswith(ADOPTED)]) == notes
    assert shown.startswith("place ")
