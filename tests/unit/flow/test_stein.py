"""The Stein discrepancy against automatic differentiation, and the mixture that it fits."""

import torch
from torch import Tensor

from raystill.flow.efficiency import midpoints
from raystill.flow.stein import (
    EDGE,
    NARROWEST,
    POINTS,
    LogisticNormalMixture,
    SteinTimes,
    fitted_weights,
    grid,
    normal_density,
    stein_discrepancy,
)

V = midpoints(1000)
U = grid(V)
SPACING = 2 * EDGE / (POINTS - 1)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(*values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_discrepancy_is_the_double_sum_of_the_stein_kernel() -> None:
    u, mass, score = (torch.randn(n, generator=rng(i), dtype=torch.float64) for i, n in enumerate((5, 10, 10)))
    found = stein_discrepancy(u, mass.abs().view(2, 5), score.view(2, 5), 0.7)
    for row in range(2):
        q, s = mass.abs().view(2, 5)[row], score.view(2, 5)[row]
        pairs = [q[i] * q[j] * stein_pair(u[i], u[j], s[i], s[j], 0.7) for i in range(5) for j in range(5)]
        torch.testing.assert_close(found[row], torch.stack(pairs).sum())


def stein_pair(x: Tensor, y: Tensor, score_x: Tensor, score_y: Tensor, bandwidth: float) -> Tensor:
    """Stein kernel of the inverse multiquadric, by automatic differentiation."""
    a, b = (z.clone().requires_grad_() for z in (x, y))
    k = (bandwidth**2 + (a - b) ** 2) ** -0.5
    (k_a,) = torch.autograd.grad(k, a, create_graph=True)
    (k_b,) = torch.autograd.grad(k, b, create_graph=True)
    (k_ab,) = torch.autograd.grad(k_a, b)
    return (score_x * score_y * k + score_x * k_b + score_y * k_a + k_ab).detach()


def test_the_discrepancy_vanishes_at_the_target_alone() -> None:
    # Target N(0, 1): score -u.
    means, stds = rows((0.0,), (0.5,), (0.0,), (0.0,)), rows((1.0,), (1.0,), (0.7,), (1.4,))
    mass = normal_density(U.expand(4, -1), means, stds)[..., 0] * SPACING
    same, shifted, narrow, wide = stein_discrepancy(U, mass, -U.expand(4, -1), 1.0).tolist()
    assert abs(same) < 1e-10
    assert min(shifted, narrow, wide) > 0.02


def test_the_discrepancy_hardly_sees_mixing_weights() -> None:
    # Why they are the regressor's: half of the mass at the wrong one of two modes costs less than a twentieth of one
    # standard deviation's shift of both.
    means, stds = rows((-3.0, 3.0)), rows((0.5, 0.5))
    u = U.clone().requires_grad_()
    (score,) = torch.autograd.grad(normal_density(u[None], means, stds).mean(2).log().sum(), u)

    def cost(weights: Tensor, shift: float) -> float:
        mass = LogisticNormalMixture(weights, means + shift, stds).logit_density(U[None]) * SPACING
        return float(stein_discrepancy(U, mass, score[None], 1.0))

    assert abs(cost(rows((0.5, 0.5)), 0.0)) < 1e-9
    assert 0 < cost(rows((0.99, 0.01)), 0.0) < cost(rows((0.5, 0.5)), 0.5) / 20


def test_weights_are_the_masses_that_components_answer_for() -> None:
    means, stds = rows((-3.0, 0.0, 2.5), (-4.0, 0.0, 4.0)), rows((0.4, 0.3, 0.6), (0.3, 0.5, 0.3))
    truth = rows((0.7, 0.1, 0.2), (0.05, 0.9, 0.05))
    parts = normal_density(U.expand(2, -1), means, stds).requires_grad_()
    mass = torch.einsum("bk,bpk->bp", truth, parts) * SPACING
    found = fitted_weights(mass, parts)
    torch.testing.assert_close(found, truth, rtol=0, atol=2e-3)
    assert not found.requires_grad
    # A component far from everything keeps some weight, and the others' are not spoilt by it.
    lost = normal_density(U.expand(1, -1), rows((-3.0, 0.0, 2.5, 9.0)), rows((0.4, 0.3, 0.6, NARROWEST)))
    found = fitted_weights(mass[:1].detach(), lost)
    torch.testing.assert_close(found[0, :3], truth[0], rtol=0, atol=2e-3)
    assert 0 < float(found[0, 3]) < 1e-6


def test_the_grid_integrates_the_narrowest_component() -> None:
    means = torch.linspace(-0.1, 0.1, 7, dtype=torch.float64)[:, None]
    mass = normal_density(U.expand(7, -1), means, torch.full_like(means, NARROWEST)) * SPACING
    torch.testing.assert_close(mass.sum(dim=1), torch.ones_like(means), rtol=0, atol=1e-4)


def test_the_score_is_that_of_the_target() -> None:
    times = SteinTimes()
    start = times.start().double()
    outputs = start + torch.randn(3, len(start), generator=rng(1), dtype=torch.float64)
    u = torch.randn(3, 7, generator=rng(), dtype=torch.float64).requires_grad_()
    log_target = times.target_mass(outputs, u).log()
    # The masses' sum is a constant of the target and not of the points: it drops out of differences between rows alone.
    v = torch.sigmoid(u)
    plain = times.log_xi_square(outputs, v) / 2 + torch.log(v * (1 - v))
    (expected,) = torch.autograd.grad(plain.sum(), u)
    torch.testing.assert_close(times.score(outputs, u.detach()), expected)
    torch.testing.assert_close(log_target - plain, (log_target - plain)[:, :1].expand(-1, 7))


def test_components_stay_in_bounds_whatever_is_learned() -> None:
    times = SteinTimes()
    for size in (100.0, -100.0):
        mixture = times.mixture(torch.full((1, len(times.start())), size, dtype=torch.float64))
        assert float(mixture.means.abs().max()) <= 6
        assert 0 < float(mixture.stds.min()) <= float(mixture.stds.max()) <= 2
        assert bool(torch.isfinite(mixture.density(V[None])).all())
