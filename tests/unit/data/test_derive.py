"""Derived shards are computed once: found again, continued where they stopped, and honest about what they left out."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raystill.config.errors import UserError
from raystill.data.derive import INDEX, Index, Shard, Source, Stage, derive, derive_shard, find, place
from raystill.data.encode import PictureTransform
from raystill.data.local import LocalStore
from raystill.data.pictures import encode_webp
from raystill.data.records import Reading, Row, unpack_row
from raystill.data.shards import Sample, ShardError, pack, unpack

READING = Reading(picture_size=8)
MAKE = partial(PictureTransform, READING)


def coloured(number: int) -> Sample:
    picture = encode_webp(Image.new("RGB", (8, 8), (number, 0, 255)))
    return Sample(key=f"s{number}", members={"webp": picture, "txt": f"caption {number}".encode()})


def bad(number: int) -> Sample:
    return Sample(key=f"s{number}", members={"webp": b"not a picture", "txt": b"bad"})


@pytest.fixture
def source(tmp_path: Path) -> LocalStore:
    """Three shards of 3, 2 and 1 samples."""
    store = LocalStore(uri=str(tmp_path / "source"))
    for i, numbers in enumerate([(0, 1, 2), (3, 4), (5,)]):
        store.write(f"{i:06d}.tar", pack(coloured(n) for n in numbers))
    return store


@pytest.fixture
def work(tmp_path: Path) -> LocalStore:
    return LocalStore(uri=str(tmp_path / "work"))


def times(store: LocalStore) -> dict[str, int]:
    """When every object of a store was written, nanoseconds."""
    return {entry.key: (store.root / entry.key).stat().st_mtime_ns for entry in store.list()}


def run(source: LocalStore, work: LocalStore, max_bad_fraction: float = 0.5) -> tuple[LocalStore, Index]:
    stage = Stage.at(work, "pictures", Source.of(source), MAKE, max_bad_fraction, stage="pictures", reading=READING)
    assert isinstance(stage.store, LocalStore)
    return stage.store, derive(stage)


def test_every_shard_is_derived_under_its_own_name(source: LocalStore, work: LocalStore) -> None:
    target, index = run(source, work)
    assert [(s.key, s.count, s.rejected) for s in index.shards] == [
        ("000000.tar", 3, ()),
        ("000001.tar", 2, ()),
        ("000002.tar", 1, ()),
    ]
    assert (index.count, index.rejected) == (6, [])
    rows: list[Row] = [unpack_row(s) for shard in index.shards for s in unpack(target.read(shard.key), shard.key)]
    assert [row["key"] for row in rows] == [f"s{n}" for n in range(6)]
    assert [row["caption"] for row in rows] == [f"caption {n}" for n in range(6)]
    for n, row in enumerate(rows):
        np.testing.assert_array_equal(row["image"], np.broadcast_to([n, 0, 255], (8, 8, 3)).astype(np.uint8))


def test_a_second_run_finds_everything_and_writes_nothing(source: LocalStore, work: LocalStore) -> None:
    target, first = run(source, work)
    before = times(target)
    again, second = run(source, work)
    assert again == target
    assert second.shards == first.shards
    assert second.identity == first.identity
    assert times(target) == before


def test_a_stopped_run_continues(source: LocalStore, work: LocalStore) -> None:
    identity = Source.of(source).identity(stage="pictures", reading=READING)
    target = place(work, "pictures", identity)
    assert isinstance(target, LocalStore)
    for key in ("000000.tar", "000002.tar"):
        derive_shard(source, key, target, MAKE())
    # A shard whose note was not written before the stop does not count as done.
    target.write("000001.tar", b"half a shard")
    assert find(target) is None
    before = times(target)
    _, index = run(source, work)
    after = times(target)
    unchanged = {key for key in before if after[key] == before[key]}
    assert unchanged == {"000000.json", "000000.tar", "000002.json", "000002.tar"}
    assert [s.count for s in index.shards] == [3, 2, 1]
    assert len(list(unpack(target.read("000001.tar"), "000001.tar"))) == 2


def test_a_source_shard_that_changes_makes_another_place(source: LocalStore, work: LocalStore) -> None:
    target, _ = run(source, work)
    source.write("000002.tar", pack([coloured(9)]))
    other, index = run(source, work)
    assert other != target
    assert index.shards[2].count == 1
    assert [s.key for s in unpack(other.read("000002.tar"), "000002.tar")] == ["s9"]


def change_reading() -> Reading:
    return Reading(picture_size=4)


@pytest.mark.parametrize("depends_on", [{"stage": "other"}, {"reading": change_reading()}, {"seed": 0}])
def test_the_identity_depends_on_every_setting(source: LocalStore, depends_on: dict[str, object]) -> None:
    plain = {"stage": "pictures", "reading": READING}
    of = Source.of(source)
    assert of.identity(**plain) == of.identity(**plain)
    assert of.identity(**{**plain, **depends_on}) != of.identity(**plain)


def test_a_source_may_be_the_first_shards_only(source: LocalStore) -> None:
    assert Source.of(source, 2).keys == ["000000.tar", "000001.tar"]
    assert Source.of(source, 2).identity() != Source.of(source).identity()


def test_rejected_samples_are_counted_and_named(source: LocalStore, work: LocalStore) -> None:
    source.write("000001.tar", pack([coloured(3), bad(4)]))
    source.write("000002.tar", pack([bad(5)]))
    target, index = run(source, work)
    assert [(s.count, len(s.rejected)) for s in index.shards] == [(3, 0), (1, 1), (0, 1)]
    assert [reason.split(":")[0] for reason in index.rejected] == ["s4", "s5"]
    assert all("its webp member does not decode" in reason for reason in index.rejected)
    assert not target.exists("000002.tar")  # nothing was left of it
    found = find(target)
    assert found is not None
    assert found.shards == index.shards


def test_what_was_left_out_is_said_when_computed_and_when_found(
    source: LocalStore, work: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    mute = Sample(key="s5", members={"webp": coloured(5).members["webp"]})
    source.write("000001.tar", pack([coloured(3), bad(4), mute]))
    for _ in ("computed", "found"):
        caplog.clear()
        _, index = run(source, work)
        head, *lines = index.left_out.split("\n  ")
        assert head == "2 of 7 samples were left out:"
        assert [line.split(":")[0] for line in lines] == ["s4", "s5"]
        assert "no caption (its txt member is missing)" in lines[1]
        assert caplog.messages.count(index.left_out) == 1


class Cutting(PictureTransform):
    """Cuts a caption of every shard, and has a file for the stage."""

    cut = 1

    def beside(self) -> dict[str, bytes]:
        return {"told.json": b"{}"}


def test_captions_that_were_cut_are_counted_when_computed_and_when_found(
    source: LocalStore, work: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage(Source.of(source), work, {}, partial(Cutting, READING))
    for _ in ("computed", "found"):
        caplog.clear()
        index = derive(stage)
        assert index.left_out == "3 of 6 captions are longer than the text encoder takes, and their ends were left out"
        assert caplog.messages == [index.left_out]
    assert work.read("told.json") == b"{}"
    (work.root / INDEX).unlink()  # as a stopped run leaves its shards
    assert derive(stage).left_out == index.left_out


def test_nothing_is_said_where_nothing_was_left_out(
    source: LocalStore, work: LocalStore, caplog: pytest.LogCaptureFixture
) -> None:
    _, index = run(source, work)
    assert index.left_out == ""
    assert caplog.messages == []


def test_too_many_samples_without_captions_stop_the_run(source: LocalStore, work: LocalStore) -> None:
    source.write("000001.tar", pack([Sample(key="s3", members={"webp": coloured(3).members["webp"]})]))
    with pytest.raises(UserError, match="1 of 5 samples cannot be used") as stopped:
        run(source, work, max_bad_fraction=0.1)
    assert "s3: no caption" in str(stopped.value)


def test_too_many_rejected_samples_stop_the_run(source: LocalStore, work: LocalStore) -> None:
    source.write("000001.tar", pack([coloured(3), bad(4)]))
    with pytest.raises(UserError, match="1 of 6 samples cannot be used") as stopped:
        run(source, work, max_bad_fraction=0.1)
    assert "s4: its webp member does not decode" in str(stopped.value)
    assert "--set reading.max_bad_fraction=" in str(stopped.value)
    (folder,) = (name for name in work.join("pictures").folders())
    before = times(work.join(f"pictures/{folder}"))
    target, index = run(source, work, max_bad_fraction=0.2)
    assert index.count == 5
    after = times(target)
    assert {key: after[key] for key in before} == before  # it went on where it had stopped
    with pytest.raises(UserError, match=r"1 of 6 samples cannot be used, and a fraction of 0\.1 is allowed"):
        run(source, work, max_bad_fraction=0.1)


def test_as_many_as_allowed_do_not_stop_the_run(source: LocalStore, work: LocalStore) -> None:
    source.write("000001.tar", pack([coloured(3), bad(4), coloured(6), coloured(7)]))
    _, index = run(source, work, max_bad_fraction=0.125)
    assert (index.count, len(index.rejected)) == (7, 1)


def test_nothing_left_stops_the_run_whatever_is_allowed(source: LocalStore, work: LocalStore) -> None:
    for i in range(3):
        source.write(f"{i:06d}.tar", pack([bad(i)]))
    with pytest.raises(UserError, match="3 of 3 samples cannot be used"):
        run(source, work, max_bad_fraction=1.0)


@pytest.mark.parametrize("kept", [600, 1540, 2048])
def test_a_damaged_source_shard_stops_the_run(source: LocalStore, work: LocalStore, kept: int) -> None:
    source.write("000001.tar", source.read("000001.tar")[:kept])
    with pytest.raises(ShardError, match=r"^000001.tar: .* [Uu]pload it again"):
        run(source, work)


def test_an_empty_source_says_so(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shards under"):
        Source.of(LocalStore(uri=str(tmp_path)))


def test_the_index_is_plain_json(source: LocalStore, work: LocalStore) -> None:
    target, index = run(source, work)
    written = json.loads(target.read(INDEX))
    assert written["identity"] == index.identity
    assert [Shard(key=s["key"], count=s["count"]) for s in written["shards"]] == list(index.shards)
