"""The order of training: every sample once an epoch, the same for any number of ranks, resumable anywhere."""

from collections import Counter
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.errors import UserError
from raystill.data.batches import local_batches
from raystill.data.derive import Shard
from raystill.data.local import LocalStore
from raystill.data.plan import Group, Plan, groups
from raystill.data.records import pack_row
from raystill.data.shards import pack
from raystill.training.lanes import share

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any)
LANES = {"lanes": st.integers(1, 5), "lane_size": st.integers(1, 7), "mixed": st.integers(1, 4)}


def shards(sizes: list[int]) -> tuple[Shard, ...]:
    return tuple(Shard(key=f"{i:06d}.tar", count=n) for i, n in enumerate(sizes))


def names(group: Group, sizes: dict[str, int]) -> list[str]:
    """The samples that a group means, as `shard/position`."""
    every = [f"{key}/{i}" for key in group.keys for i in range(sizes[key])]
    return [every[i] for i in group.order(len(every))]


def order(plan: Plan, start: int, steps: int, lane: int = 0) -> list[str]:
    """What a lane takes in some steps."""
    sizes = {shard.key: shard.count for shard in plan.shards}
    return [name for group in groups(plan, lane, start, steps) for name in names(group, sizes)]


def by_step(plan: Plan, steps: int) -> Iterator[list[str]]:
    """What all lanes take, step by step."""
    every = [order(plan, 0, steps, lane) for lane in range(plan.lanes)]
    for step in range(steps):
        yield [name for lane in every for name in lane[step * plan.lane_size : (step + 1) * plan.lane_size]]


@given(sizes=SIZES, seed=st.integers(0, 3), **LANES)
def test_an_epoch_holds_every_sample_once_and_the_next_one_begins_where_it_ends(
    sizes: list[int], lanes: int, lane_size: int, mixed: int, seed: int
) -> None:
    plan = Plan(shards=shards(sizes), seed=seed, lanes=lanes, lane_size=lane_size, shuffle_shards=mixed)
    every = {f"{shard.key}/{i}" for shard in plan.shards for i in range(shard.count)}
    steps = -(-3 * plan.samples // plan.step_size)
    seen: Counter[str] = Counter()
    for step, taken in enumerate(by_step(plan, steps)):
        assert len(taken) == plan.step_size
        seen.update(taken)
        whole = (step + 1) * plan.step_size // plan.samples
        # At every step some samples may be one epoch ahead of the others, and none is more than that.
        assert all(whole <= seen[name] <= whole + 1 + (plan.step_size - 1) // plan.samples for name in every)
        if (step + 1) * plan.step_size % plan.samples == 0:
            assert set(seen.values()) == {whole}
    assert set(seen) == every


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_any_number_of_ranks_sees_every_sample_of_an_epoch(ranks: int) -> None:
    """The demo's shards on so many ranks, each of which reads the lanes of its own share alone."""
    sizes = [222, 223] * 5 + [222, 223, 222, 222]  # 15 shards less those that are held out, as the demo's
    plan = Plan(shards=shards(sizes), seed=0, lanes=64, lane_size=4)
    steps = plan.samples // plan.step_size
    read = [
        name
        for rank in range(ranks)
        for lane in share(plan.lanes, rank, ranks)
        if lane.weight
        for name in order(plan, 0, steps, lane.number)
    ]
    assert len(read) == len(set(read)) == steps * plan.step_size
    left = plan.samples - len(read)
    assert 0 <= left < plan.step_size  # these open the next epoch
    following = next(islice(by_step(plan, steps + 1), steps, None))
    assert len({*read, *following}) == plan.samples


@given(sizes=SIZES, start=st.integers(0, 20), steps=st.integers(1, 20), **LANES)
def test_resuming_at_any_step_gives_the_rest_of_the_same_order(
    sizes: list[int], start: int, steps: int, lanes: int, lane_size: int, mixed: int
) -> None:
    plan = Plan(shards=shards(sizes), seed=2, lanes=lanes, lane_size=lane_size, shuffle_shards=mixed)
    for lane in range(lanes):
        assert order(plan, start, steps, lane) == order(plan, 0, start + steps, lane)[start * lane_size :]


def test_a_lane_reads_few_shards_of_an_epoch() -> None:
    """What it takes in the steps of a round lies side by side."""
    plan = Plan(shards=shards([100] * 64), seed=0, lanes=8, lane_size=5, shuffle_shards=4)
    steps = plan.samples // plan.step_size
    for lane in range(plan.lanes):
        read = [key for group in groups(plan, lane, 0, steps) for key in group.keys]
        assert len(read) <= 2 * len(plan.shards) / plan.lanes + plan.shuffle_shards


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = Plan(shards=shards([8, 8]), seed=1, lane_size=4, shuffle_shards=2)
    one, two = order(first, 0, 4), order(first, 4, 4)
    assert sorted(one) == sorted(two)
    assert one != two
    assert one != order(Plan(shards=shards([8, 8]), seed=2, lane_size=4, shuffle_shards=2), 0, 4)
    assert one != sorted(one)


def test_samples_of_several_shards_are_mixed() -> None:
    plan = Plan(shards=shards([20, 20, 20]), seed=0, lane_size=20, shuffle_shards=3)
    assert {name.split("/")[0] for name in order(plan, 0, 1)} == {"000000.tar", "000001.tar", "000002.tar"}


def test_a_plan_without_samples_is_refused_and_does_not_run_forever() -> None:
    with pytest.raises(UserError, match="no samples in the 2 shards"):
        Plan(shards=shards([0, 0]), seed=0)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStore, tuple[Shard, ...]]:
    """Shards of 3, 5 and 4 rows whose only array is the row's own number."""
    store = LocalStore(uri=str(tmp_path_factory.mktemp("rows")))
    made, number = [], 0
    for i, count in enumerate((3, 5, 4)):
        rows = [
            {"key": f"s{n}", "caption": f"c{n}", "value": np.full((2, 3), n)} for n in range(number, number + count)
        ]
        store.write(f"{i:06d}.tar", pack(pack_row(row) for row in rows))
        made.append(Shard(key=f"{i:06d}.tar", count=count))
        number += count
    return store, tuple(made)


@pytest.mark.parametrize("lanes", [(0,), (1, 2), (2,)])
@pytest.mark.parametrize("lane_size", [1, 4, 5, 30])
def test_batches_follow_the_plan_and_continue_in_the_middle(
    stored: tuple[LocalStore, tuple[Shard, ...]], lanes: tuple[int, ...], lane_size: int
) -> None:
    store, there = stored
    plan = Plan(shards=there, seed=4, lanes=3, lane_size=lane_size, shuffle_shards=2)
    whole = list(local_batches(store, plan, lanes, 0, 7, torch.device("cpu")))
    first = {"000000.tar": 0, "000001.tar": 3, "000002.tar": 8}
    for place, lane in enumerate(lanes):
        batches = [step[place] for step in whole]
        assert [len(batch["key"]) for batch in batches] == [lane_size] * 7
        found = [first[name.split("/")[0]] + int(name.split("/")[1]) for name in order(plan, 0, 7, lane)]
        assert [key for batch in batches for key in batch["key"]] == [f"s{n}" for n in found]
        assert [caption for batch in batches for caption in batch["caption"]] == [f"c{n}" for n in found]
        assert torch.cat([batch["value"][:, 1, 2] for batch in batches]).tolist() == found
    resumed = list(local_batches(store, plan, lanes, 3, 4, torch.device("cpu")))
    assert [[b["key"] for b in step] for step in resumed] == [[b["key"] for b in step] for step in whole[3:]]
