"""The order of training: every sample once an epoch, equally many batches on every rank, resumable anywhere."""

from collections import Counter
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

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any)


def shards(sizes: list[int]) -> tuple[Shard, ...]:
    return tuple(Shard(key=f"{i:06d}.tar", count=n) for i, n in enumerate(sizes))


def names(group: Group, sizes: dict[str, int]) -> list[str]:
    """The samples that a group means, as `shard/position`."""
    every = [f"{key}/{i}" for key in group.keys for i in range(sizes[key])]
    return [every[i] for i in group.order(len(every))]


def order(plan: Plan, start: int, count: int) -> list[str]:
    sizes = {shard.key: shard.count for shard in plan.shards}
    return [name for group in groups(plan, start, count) for name in names(group, sizes)]


@given(sizes=SIZES, world_size=st.integers(1, 5), mixed=st.integers(1, 4), seed=st.integers(0, 3))
def test_the_ranks_together_read_every_sample_once_an_epoch(
    sizes: list[int], world_size: int, mixed: int, seed: int
) -> None:
    there = shards(sizes)
    per_epoch = -(-sum(n > 0 for n in sizes) // mixed)
    epochs: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for rank in range(world_size):
        plan = Plan(shards=there, seed=seed, rank=rank, world_size=world_size, shuffle_shards=mixed)
        # Enough samples for a rank that owned both epochs and more, whatever it is dealt.
        for group in groups(plan, 0, 3 * sum(sizes)):
            assert group.order_seed[1] % world_size == rank
            whole = Group(keys=group.keys, order_seed=group.order_seed, skip=0, stop=10**6)
            epoch = group.order_seed[1] // per_epoch
            if epoch in epochs:
                epochs[epoch].update(names(whole, {s.key: s.count for s in there}))
    every = Counter(f"{shard.key}/{i}" for shard in there for i in range(shard.count))
    assert epochs == {0: every, 1: every}


@given(
    sizes=SIZES,
    world_size=st.integers(1, 5),
    batch_size=st.integers(1, 7),
    steps=st.integers(1, 9),
    mixed=st.integers(1, 4),
)
def test_every_rank_gets_equally_many_samples(
    sizes: list[int], world_size: int, batch_size: int, steps: int, mixed: int
) -> None:
    for rank in range(world_size):
        plan = Plan(shards=shards(sizes), seed=1, rank=rank, world_size=world_size, shuffle_shards=mixed)
        assert len(order(plan, 0, steps * batch_size)) == steps * batch_size


@given(sizes=SIZES, rank=st.integers(0, 2), start=st.integers(0, 40), count=st.integers(1, 40))
def test_resuming_at_any_position_gives_the_rest_of_the_same_order(
    sizes: list[int], rank: int, start: int, count: int
) -> None:
    plan = Plan(shards=shards(sizes), seed=2, rank=rank, world_size=3, shuffle_shards=2)
    assert order(plan, start, count) == order(plan, 0, start + count)[start:]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    first = Plan(shards=shards([8, 8]), seed=1, shuffle_shards=2)
    one, two = order(first, 0, 16), order(first, 16, 16)
    assert sorted(one) == sorted(two)
    assert one != two
    assert one != order(Plan(shards=shards([8, 8]), seed=2, shuffle_shards=2), 0, 16)
    assert one != sorted(one)


def test_samples_of_several_shards_are_mixed() -> None:
    plan = Plan(shards=shards([20, 20, 20]), seed=0, shuffle_shards=3)
    assert {name.split("/")[0] for name in order(plan, 0, 20)} == {"000000.tar", "000001.tar", "000002.tar"}


def test_a_plan_without_samples_is_refused_and_does_not_run_forever() -> None:
    with pytest.raises(UserError, match="no samples"):
        next(groups(Plan(shards=shards([0, 0]), seed=0), 0, 1))


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


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 30])
def test_batches_follow_the_plan_and_continue_in_the_middle(
    stored: tuple[LocalStore, tuple[Shard, ...]], rank: int, batch_size: int
) -> None:
    store, there = stored
    plan = Plan(shards=there, seed=4, rank=rank, world_size=2, shuffle_shards=2)
    whole = list(local_batches(store, plan, batch_size, 0, 7, torch.device("cpu")))
    assert [len(batch["key"]) for batch in whole] == [batch_size] * 7
    first = {"000000.tar": 0, "000001.tar": 3, "000002.tar": 8}
    numbers = [first[name.split("/")[0]] + int(name.split("/")[1]) for name in order(plan, 0, 7 * batch_size)]
    assert [key for batch in whole for key in batch["key"]] == [f"s{n}" for n in numbers]
    assert [caption for batch in whole for caption in batch["caption"]] == [f"c{n}" for n in numbers]
    assert torch.cat([batch["value"][:, 1, 2] for batch in whole]).tolist() == numbers
    resumed = list(local_batches(store, plan, batch_size, 3, 4, torch.device("cpu")))
    assert [batch["key"] for batch in resumed] == [batch["key"] for batch in islice(whole, 3, None)]
