"""The random numbers of training steps."""

import pytest
import scipy.stats
import torch

from raystill.methods.method import EVERY_LANE, generator


def test_no_two_of_200_000_steps_share_their_numbers() -> None:
    # Of keys of 32 bits 4.7 pairs would.
    first = {generator(0, lane, step).key() >> 64 for lane in range(64) for step in range(3125)}
    assert len(first) == 200_000


def test_what_all_lanes_draw_alike_is_no_lane_s_own() -> None:
    at = [(0, EVERY_LANE, 1), (0, 0, 1), (0, 1, 1), (1, EVERY_LANE, 1), (1, 0, 1), (0, 0, -1), (0, 1, 0), (0, 11, 0)]
    assert len({generator(*each).key() for each in at}) == len(at)


@pytest.mark.parametrize(("lanes", "count"), [(1, 8), (3, 4), (4, 1)])
def test_what_lanes_stratify_covers_the_whole_together(lanes: int, count: int) -> None:
    firsts = []
    for step in range(300):
        drawn = [generator(5, lane, step, lanes).stratified(count) for lane in range(lanes)]
        for own in drawn:  # one in each of a lane's own bins
            assert sorted((own * count).long().tolist()) == list(range(count))
        every = torch.cat(drawn)  # and one in each of the step's
        assert sorted((every * lanes * count).long().tolist()) == list(range(lanes * count))
        firsts.append(float(drawn[0][0]))
    assert scipy.stats.kstest(firsts, "uniform").pvalue > 0.01  # a number of a lane is uniform by itself
