"""Predictions of every kind say the same thing about the same point."""

import pytest
import torch
from torch import Tensor

from raystill.flow.predictions import Kind, Prediction, column, guided

KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample")
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]


def point(shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """x_0, e, signal, noise and x = signal x_0 + noise e, with an angle of its own for every sample."""
    rng = torch.Generator().manual_seed(1)
    x_0, e = (torch.randn(shape, generator=rng, dtype=torch.float64) for _ in range(2))
    angle = torch.linspace(0.2, 1.4, shape[0], dtype=torch.float64)
    s, n = column(angle.cos(), x_0), column(angle.sin(), x_0)
    return x_0, e, s, n, s * x_0 + n * e


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_true_value_of_a_kind_gives_back_data_and_noise(kind: Kind, shape: tuple[int, ...]) -> None:
    x_0, e, s, n, x = point(shape)
    value = {"epsilon": e, "v_prediction": s * e - n * x_0, "sample": x_0}[kind]
    prediction = Prediction(kind, value, x, s, n)
    torch.testing.assert_close(prediction.data, x_0)
    torch.testing.assert_close(prediction.epsilon, e)


@pytest.mark.parametrize("kind", KINDS)
def test_any_value_is_read_so_that_data_and_noise_make_up_the_point(kind: Kind) -> None:
    _, _, s, n, x = point(SHAPES[0])
    wrong = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    prediction = Prediction(kind, wrong, x, s, n)
    torch.testing.assert_close(s * prediction.data + n * prediction.epsilon, x)


def test_v_and_sample_are_finite_at_pure_noise() -> None:
    x = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    zero, one = (column(torch.full((3,), v, dtype=torch.float64), x) for v in (0.0, 1.0))
    v = Prediction("v_prediction", x / 3, x, zero, one)
    assert torch.equal(v.data, -x / 3)
    assert torch.equal(v.epsilon, x)
    assert torch.equal(Prediction("sample", x / 3, x, zero, one).epsilon, x)


def test_guidance_one_is_none_zero_is_unconditional_and_w_counts_from_zero() -> None:
    u, c = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 5.0])
    assert torch.equal(guided(u, c, 1.0), c)
    assert torch.equal(guided(u, c, 0.0), u)
    assert guided(u, c, 3.0).tolist() == [7.0, 19.0]  # e_u + 3 (e_c - e_u); with w - 1 it would be [9, 26]


@pytest.mark.parametrize("kind", KINDS)
def test_guiding_the_value_guides_the_noise(kind: Kind) -> None:
    _, _, s, n, x = point(SHAPES[0])
    u, c = (torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in (3, 4))
    empty, text = (Prediction(kind, value, x, s, n).epsilon for value in (u, c))
    torch.testing.assert_close(Prediction(kind, guided(u, c, 3.5), x, s, n).epsilon, guided(empty, text, 3.5))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_column_is_one_number_per_sample(shape: tuple[int, ...]) -> None:
    like = torch.zeros(shape)
    numbers = torch.arange(shape[0], dtype=torch.float64)
    shaped = column(numbers, like) + like
    assert shaped.dtype == torch.float32
    for i, sample in enumerate(shaped):
        assert bool((sample == i).all())
