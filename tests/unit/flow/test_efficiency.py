"""The best law of times, and how far others are from it."""

import math

import pytest
import torch

from raystill.flow.efficiency import midpoints, oracle, relative_second_moment


def test_the_best_law_of_time_in_closed_form() -> None:
    v = midpoints(4000)
    best = oracle(torch.exp(-6 * v))
    expected = ((1 - math.exp(-3)) / 3) ** 2 / ((1 - math.exp(-6)) / 6)
    assert best.ratio == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(best.density, 3 * torch.exp(-3 * v) / (1 - math.exp(-3)), rtol=1e-5, atol=0)
    square = torch.exp(-6 * v)
    assert relative_second_moment(square, best.density) == pytest.approx(best.ratio, rel=1e-9)
    assert relative_second_moment(square, torch.ones_like(v)) == pytest.approx(1)
    other = 2 * v  # any other law is worse
    assert relative_second_moment(square, other) > best.ratio
    rows = torch.stack([square, square.flip(0)])
    own = torch.stack([best.density, best.density.flip(0)])
    assert relative_second_moment(rows, own) == pytest.approx(best.ratio, rel=1e-9)
    assert relative_second_moment(rows, own[:1]) > best.ratio
