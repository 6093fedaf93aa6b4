"""Ray Data over a real S3 server gives the same shards and the same batches as one process does."""

import secrets
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image

from raystill.config.errors import UserError
from raystill.data import stream as stream_module
from raystill.data.batches import local_batches
from raystill.data.derive import INDEX, Index, Source, Stage, derive, derive_shard, find
from raystill.data.encode import PictureTransform
from raystill.data.pictures import encode_webp
from raystill.data.plan import Plan
from raystill.data.records import Reading
from raystill.data.shards import Sample, pack
from raystill.data.store import Store, StoreError, create_bucket, open_store
from raystill.data.stream import derive_stream, stream_batches

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.usefixtures("session")]

READING = Reading(picture_size=8)
MAKE = partial(PictureTransform, READING)
SIZES = (5, 3, 4, 6, 1)
CPU = torch.device("cpu")


def sample(number: int) -> Sample:
    picture = encode_webp(Image.new("RGB", (8, 8), (number, 255 - number, 7)))
    return Sample(key=f"s{number:03d}", members={"webp": picture, "txt": f"caption {number}".encode()})


def new_store() -> Store:
    uri = f"s3://stream-{secrets.token_hex(4)}"
    create_bucket(uri)
    return open_store(uri)


@pytest.fixture(scope="module")
def source(s3: dict[str, str]) -> Store:
    """Five shards on S3, one sample of which does not decode."""
    store, number = new_store(), 0
    for i, size in enumerate(SIZES):
        samples = [sample(n) for n in range(number, number + size)]
        if i == 3:
            samples[2].members["webp"] = b"no picture"
        store.write(f"{i:06d}.tar", pack(samples))
        number += size
    return store


@pytest.fixture(scope="module")
def local(source: Store) -> tuple[Store, Index]:
    """The shards as one process derives them."""
    target = new_store().join("pictures/here")
    return target, derive(Stage(Source.of(source), target, {"stage": "pictures"}, MAKE, 0.2))


def stream(source: Store, target: Store, max_bad_fraction: float = 0.2) -> Index:
    stage = Stage(Source.of(source), target, {"stage": "pictures"}, MAKE, max_bad_fraction)
    return derive_stream(stage, actors=2, options={"num_cpus": 0.5})


def test_an_actor_pool_derives_the_same_shards(source: Store, local: tuple[Store, Index]) -> None:
    target = new_store().join("pictures/there")
    index = stream(source, target)
    assert index == local[1]
    assert [shard.count for shard in index.shards] == [5, 3, 4, 5, 1]
    assert index.rejected[0].startswith("s014: its webp member does not decode")
    # Names, sizes and entity tags: the shards are the same to the byte.
    assert target.list() == local[0].list()
    assert find(target) == index


def test_a_stopped_pool_continues_and_a_finished_one_is_found(source: Store, local: tuple[Store, Index]) -> None:
    target = new_store().join("pictures/there")
    derive_shard(source, "000001.tar", target, MAKE())
    # A shard that is done is not read again, so that it may even be gone.
    target.write("000001.tar", b"kept as it is")
    index = stream(source, target)
    assert index == local[1]
    assert target.read("000001.tar") == b"kept as it is"
    for shard in index.shards:
        target.delete(shard.key)
    assert stream(source, target) == index
    assert not target.exists("000000.tar")


def test_too_many_rejected_samples_stop_the_pool(source: Store) -> None:
    target = new_store().join("pictures/there")
    with pytest.raises(UserError, match="1 of 19 samples cannot be used"):
        stream(source, target, max_bad_fraction=0.01)
    assert not target.exists(INDEX)


def test_a_damaged_shard_is_named_by_the_pool() -> None:
    damaged, target = new_store(), new_store().join("pictures/there")
    damaged.write("000000.tar", pack([sample(0)]))
    damaged.write("000001.tar", pack([sample(1)])[:700])
    with pytest.raises(UserError, match=r"^000001.tar: .* [Uu]pload it again"):
        stream(damaged, target)
    assert not target.exists(INDEX)


def same(found: list[list[dict[str, Any]]], expected: list[list[dict[str, Any]]]) -> None:
    """Batches are equal, one by one, to the bit."""
    assert [len(step) for step in found] == [len(step) for step in expected]
    pairs = zip((b for step in found for b in step), (b for step in expected for b in step), strict=True)
    for one, other in pairs:
        assert set(one) == set(other) == {"key", "caption", "image"}
        assert (one["key"], one["caption"]) == (other["key"], other["caption"])
        assert one["image"].dtype == other["image"].dtype == torch.uint8
        assert torch.equal(one["image"], other["image"])


@pytest.mark.parametrize(
    ("lanes", "part_bytes"), [((0,), stream_module.PART_BYTES), ((1,), 1), ((1, 2), 20_000), ((0, 1, 2), 2**20)]
)
def test_streamed_batches_are_the_local_ones(
    local: tuple[Store, Index], lanes: tuple[int, ...], part_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "PART_BYTES", part_bytes)  # one part, a part per batch, a few parts
    store, index = local
    plan = Plan(shards=index.shards, seed=3, lanes=3, lane_size=4, shuffle_shards=2)
    expected = list(local_batches(store, plan, lanes, 0, 9, CPU))
    assert [len(step) for step in expected] == [len(lanes)] * 9
    same(list(stream_batches(store, plan, lanes, 0, 9, CPU)), expected)
    same(list(stream_batches(store, plan, lanes, 5, 4, CPU)), expected[5:])


def test_a_shard_that_is_missing_stops_the_stream_with_its_name(source: Store) -> None:
    target = new_store().join("pictures/there")
    index = derive(Stage(Source.of(source), target, {}, MAKE, 0.2))
    plan = Plan(shards=index.shards, seed=3, lane_size=1, shuffle_shards=1)
    keys = [shard.key for shard in index.shards]
    # The last shard of the first epoch: everything before it is good.
    order = [batch["key"][0] for (batch,) in local_batches(target, plan, [0], 0, index.count, CPU)]
    first = {key: f"s{sum(SIZES[:i]):03d}" for i, key in enumerate(keys)}
    last = max(keys, key=lambda key: order.index(first[key]))
    target.delete(last)
    with pytest.raises(StoreError, match=last) as stopped:
        list(stream_batches(target, plan, [0], 0, index.count, CPU))
    assert str(stopped.value).startswith(target.uri)
    assert "Traceback" not in str(stopped.value)
