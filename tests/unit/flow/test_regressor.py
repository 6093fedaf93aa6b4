"""What a learned time sampler knows: splines, the deviance that it minimises, and the features of an instance."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raystill.flow.regressor import TimeNetwork, deviance, instance_features, spline, spline_slope


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def points(rows: int, count: int) -> Tensor:
    return torch.rand(rows, count, generator=rng(), dtype=torch.float64)


@pytest.mark.parametrize(("rows", "count", "knots"), [(3, 5, 7), (4, 4, 4)])
def test_splines_hold_constants_lines_and_parabolas(rows: int, count: int, knots: int) -> None:
    v, spacing = points(rows, count), 1 / (knots - 3)
    centres = (torch.arange(knots, dtype=torch.float64) - 1) * spacing
    scale = torch.arange(1.0, rows + 1).double()[:, None]  # every row its own
    for coefficients, expected in (
        (torch.ones(knots).double(), torch.ones_like(v)),
        (centres, v),
        (centres**2 - spacing**2 / 3, v**2),  # Marsden's identity
    ):
        torch.testing.assert_close(spline(scale * coefficients, v), scale * expected)


def test_slopes_are_derivatives() -> None:
    v = points(3, 50).requires_grad_()
    coefficients = torch.randn(3, 9, generator=rng(), dtype=torch.float64)
    (slope,) = torch.autograd.grad(spline(coefficients, v).sum(), v)
    torch.testing.assert_close(spline_slope(coefficients, v.detach()), slope)


@given(scale=st.floats(1e-6, 1e6), seed=st.integers(0, 20))
def test_the_deviance_is_not_negative_and_knows_no_scale(scale: float, seed: int) -> None:
    values = torch.rand(9, generator=rng(seed), dtype=torch.float64) + 0.01
    log_mean = torch.randn(9, generator=rng(seed + 100), dtype=torch.float64)
    found = float(deviance(log_mean, values))
    ratios = values / log_mean.exp()
    assert found == pytest.approx(math.log(float(ratios.mean())) - float(ratios.log().mean()), abs=1e-9)
    assert found >= 0
    assert float(deviance(log_mean + 3, scale * values)) == pytest.approx(found, abs=1e-9)
    assert float(deviance(values.log() + 7, values)) == pytest.approx(0, abs=1e-9)


def test_the_deviance_is_least_at_the_arithmetic_mean_and_not_at_the_geometric_one() -> None:
    # Half of the samples have values 1 and 9 (mean 5, geometric mean 3), the other half always 2.
    values = torch.tensor([1.0, 9.0] * 500 + [2.0, 2.0] * 500, dtype=torch.float64)
    side = torch.tensor([1.0] * 1000 + [0.0] * 1000, dtype=torch.float64)
    gap = torch.zeros((), dtype=torch.float64, requires_grad=True)
    for value, at_minimum in ((5 / 2, True), (3 / 2, False)):
        gap.data.fill_(math.log(value))
        (slope,) = torch.autograd.grad(deviance(gap * side, values), gap)
        assert (abs(float(slope)) < 1e-9) == at_minimum


def test_zero_is_the_smallest_value() -> None:
    log_mean = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    value = deviance(log_mean, torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    value.backward()
    assert bool(torch.isfinite(value))
    assert log_mean.grad is not None
    assert bool(torch.isfinite(log_mean.grad).all())
    assert float(log_mean.grad.abs().max()) <= 1


@pytest.mark.parametrize("shape", [(3, 2, 5, 7), (4, 4, 4, 4)])
def test_features_are_five_per_channel_and_of_each_sample_alone(shape: tuple[int, ...]) -> None:
    x_0, mu = (torch.randn(shape, generator=rng(i)) for i in (1, 2))
    found = instance_features(x_0, mu)
    assert found.shape == (shape[0], 5 * shape[1])
    torch.testing.assert_close(instance_features(x_0[1:2], mu[1:2])[0], found[1])
    mean, mean_mu, log_x, log_mu, log_gap = found.view(shape[0], 5, shape[1]).unbind(1)
    torch.testing.assert_close(mean, x_0.mean((2, 3)))
    torch.testing.assert_close(mean_mu, mu.mean((2, 3)))
    for log, x in ((log_x, x_0), (log_mu, mu), (log_gap, (mu - x_0) / 2**0.5)):
        torch.testing.assert_close(log.exp(), x.square().mean((2, 3)).sqrt(), rtol=1e-4, atol=1e-4)


def test_features_of_unit_latents_are_about_zero_and_those_of_flat_ones_finite() -> None:
    x_0, mu = (torch.randn(50, 3, 16, 16, generator=rng(i)) for i in (1, 2))
    assert float(instance_features(x_0, mu).abs().max()) < 0.35
    flat = instance_features(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    assert bool(torch.isfinite(flat).all())


def test_a_network_starts_as_its_row_and_learns_from_features_where_it_has_them() -> None:
    start = torch.tensor([1.0, -2.0, 0.5])
    for features in (0, 4):
        network = TimeNetwork(start, features, 8)
        h = torch.randn(6, features, generator=rng())
        rows = network(h)
        torch.testing.assert_close(rows, start.expand(6, 3))
        assert rows.data_ptr() != network.table.data_ptr()
        rows.square().sum().backward()
        assert all(p.grad is not None for p in network.parameters())
        with torch.no_grad():
            for p in network.parameters():
                p.sub_(0.1 * (p.grad if p.grad is not None else 0))
        moved = network(h)
        assert torch.allclose(moved[0], moved[1]) == (features == 0)
