"""How lanes are shared out among ranks, and what is said where they do not fit."""

import logging

import pytest

from raystill.config.errors import UserError
from raystill.run.validate import share_out
from raystill.training.lanes import numbers, share


@pytest.mark.parametrize("lanes", range(1, 9))
@pytest.mark.parametrize("world_size", range(1, 9))
def test_ranks_share_out_all_lanes_and_take_equally_many_forwards(lanes: int, world_size: int) -> None:
    ranks = [share(lanes, rank, world_size) for rank in range(world_size)]
    assert {len(rank) for rank in ranks} == {-(-lanes // world_size)}
    assert [lane.number for rank in ranks for lane in rank if lane.weight] == list(range(lanes))
    for rank in ranks:
        own = [lane.number for lane in rank if lane.weight]
        repeated = {lane.number for lane in rank if not lane.weight}
        assert repeated <= ({own[-1]} if own else set(range(lanes)))
        assert numbers(rank) == (own or sorted(repeated))


def test_more_workers_than_lanes_are_refused_with_both_ways_out() -> None:
    with pytest.raises(
        UserError, match=r"workers is 8, .*lanes is 2: 6 of .*workers=2, or.* --set x\.training\.lanes=8$"
    ):
        share_out(2, 8, "x.")


@pytest.mark.parametrize(("lanes", "workers"), [(1, 1), (6, 3), (64, 8)])
def test_workers_that_fit_are_no_matter(lanes: int, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    share_out(lanes, workers)
    assert not caplog.records


def test_workers_that_fit_badly_are_said_with_those_that_fit(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "raystill"):
        share_out(6, 4)
    assert "the time of 2 lanes, and 2 of 8 forwards count for nothing; 1, 2, 3, 6 workers fit" in caplog.text
