"""The Stein discrepancy against automatic differentiation, and the mixture that it fits."""

import math

import pytest
import torch

from raystill.flow.efficiency import midpoints
from raystill.flow.stein import SteinTimes, stein_discrepancy

V = midpoints(1000)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_discrepancy_is_unbiased_and_vanishes_at_the_target() -> None:
    # Target and proposal N(0, 1) in u: score -u.
    def mean_of(shift: float) -> tuple[float, float]:
        u = torch.randn(400, 8, generator=rng(), dtype=torch.float64) + shift
        found = stein_discrepancy(torch.zeros(400, 1, dtype=torch.float64), u, -u, 1.0)
        return float(found.mean()), float(found.std()) / 20

    centre, error = mean_of(0.0)
    assert abs(centre) < 3 * error
    assert mean_of(0.5)[0] > 0.02
    u = torch.randn(1, 6, generator=rng(), dtype=torch.float64)
    halves = stein_discrepancy(torch.full((1, 2), math.log(0.5), dtype=torch.float64), u, -u, 1.0)
    pairs = [(i, j) for i in range(6) for j in range(6) if i != j]
    weight = {True: 0.25 / 6, False: 0.25 / 9}  # of a pair of one component (3 x 2 of them) and of two (3 x 3)
    value = {(i, j): stein_pair(float(u[0, i]), float(u[0, j])) for i, j in pairs}
    expected = sum(weight[i // 3 == j // 3] * value[i, j] for i, j in pairs)
    assert float(halves) == pytest.approx(expected, rel=1e-9)


def stein_pair(x: float, y: float) -> float:
    """Stein kernel of N(0, 1) and the inverse multiquadric with c = 1, by automatic differentiation."""
    a, b = (torch.tensor(z, dtype=torch.float64, requires_grad=True) for z in (x, y))
    k = (1 + (a - b) ** 2) ** -0.5
    (k_a,) = torch.autograd.grad(k, a, create_graph=True)
    (k_b,) = torch.autograd.grad(k, b, create_graph=True)
    (k_ab,) = torch.autograd.grad(k_a, b)
    return float((x * y * k - x * k_b - y * k_a + k_ab).detach())


def test_the_score_is_that_of_the_target() -> None:
    times = SteinTimes()
    start = times.start().double()
    outputs = start + torch.randn(3, len(start), generator=rng(1), dtype=torch.float64)
    u = torch.randn(3, 7, generator=rng(), dtype=torch.float64).requires_grad_()
    v = torch.sigmoid(u)
    log_target = times.log_xi_square(outputs, v) / 2 + torch.log(v * (1 - v))
    (expected,) = torch.autograd.grad(log_target.sum(), u)
    torch.testing.assert_close(times.score(outputs, u.detach()), expected)


def test_components_stay_in_bounds_whatever_is_learned() -> None:
    times = SteinTimes()
    for size in (100.0, -100.0):
        mixture = times.mixture(torch.full((1, len(times.start())), size, dtype=torch.float64))
        assert float(mixture.means.abs().max()) <= 8
        assert 0 < float(mixture.stds.min()) <= float(mixture.stds.max()) <= 2.5
        assert bool(torch.isfinite(mixture.density(V[None])).all())
