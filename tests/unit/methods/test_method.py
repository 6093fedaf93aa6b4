"""The random numbers of training steps."""

from raystill.methods.method import EVERY_RANK, generator


def test_no_two_of_200_000_steps_share_their_numbers() -> None:
    # Of keys of 32 bits 4.7 pairs would.
    first = {generator(0, rank, step).key() >> 64 for rank in range(64) for step in range(3125)}
    assert len(first) == 200_000


def test_what_all_ranks_draw_alike_is_no_rank_s_own() -> None:
    at = [(0, EVERY_RANK, 1), (0, 0, 1), (0, 1, 1), (1, EVERY_RANK, 1), (1, 0, 1), (0, 0, -1), (0, 1, 0), (0, 11, 0)]
    assert len({generator(*each).key() for each in at}) == len(at)
