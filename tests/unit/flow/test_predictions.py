"""Predictions of every kind say the same thing about the same point."""

import pytest
import torch
from torch import Tensor

from raystill.flow.predictions import Kind, Prediction, check_data, check_noise, column, guided

KINDS: tuple[Kind, ...] = ("epsilon", "v_prediction", "sample", "flow_prediction")
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
    value = {"epsilon": e, "v_prediction": s * e - n * x_0, "sample": x_0, "flow_prediction": e - x_0}[kind]
    prediction = Prediction(kind, value, x, s, n)
    torch.testing.assert_close(prediction.flow, e - x_0)
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
    flow = Prediction("flow_prediction", x / 3, x, zero, one)
    torch.testing.assert_close(flow.data, x - x / 3)
    assert torch.equal(flow.epsilon, x)


def test_v_flow_and_noise_are_finite_at_clean_data() -> None:
    x = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    zero, one = (column(torch.full((3,), v, dtype=torch.float64), x) for v in (0.0, 1.0))
    for kind in ("v_prediction", "flow_prediction", "epsilon"):
        p = Prediction(kind, x / 3, x, one, zero)
        assert torch.equal(p.data, x)
        torch.testing.assert_close(p.epsilon, x + x / 3 if kind == "flow_prediction" else x / 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_kind_cannot_say_at_an_end_is_refused_there_only(kind: Kind) -> None:
    inside, clean, pure = (torch.tensor([0.7, a], dtype=torch.float64) for a in (0.3, 0.0, torch.pi / 2))
    for angle in (inside, clean):
        check_data(kind, angle)
    for angle in (inside, pure):
        check_noise(kind, angle)
    if kind == "epsilon":
        with pytest.raises(ValueError, match="needs v_prediction"):
            check_data(kind, pure)
    else:
        check_data(kind, pure)
    if kind == "sample":
        with pytest.raises(ValueError, match="no noise where the noise coefficient is 0; ask at times t > 0"):
            check_noise(kind, clean)
    else:
        check_noise(kind, clean)


def test_a_conversion_that_does_not_exist_is_an_error_and_no_infinity() -> None:
    x, zero, one = torch.ones(1, 2, 3, 3), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="ask at times t > 0"):
        _ = Prediction("sample", x, x, one, zero).epsilon
    with pytest.raises(ValueError, match="needs v_prediction"):
        _ = Prediction("epsilon", x, x, zero, one).data
    assert bool(Prediction("sample", x, x, one, zero).data.isfinite().all())


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


@pytest.mark.parametrize("count", [1, 3])
def test_a_column_of_another_length_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=rf"shape \(2,\), found shape \({count},\)"):
        column.__wrapped__(torch.zeros(count), torch.zeros(2, 3, 4, 5))  # type: ignore[attr-defined]
