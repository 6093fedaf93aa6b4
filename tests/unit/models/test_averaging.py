"""Moving averages against the recursion that they stand for."""

import pytest
import torch

from raystill.models.averaging import Average


def test_the_decay_warms_up_to_its_bound() -> None:
    value = torch.zeros(1)
    average = Average({"a": value}, decay=0.5)
    expected = 0.0
    for step, decay in enumerate([1 / 10, 2 / 11, 3 / 12, 4 / 13, 5 / 14, 6 / 15, 7 / 16, 8 / 17, 0.5, 0.5]):
        value.fill_(step + 1.0)
        average.update({"a": value}, step)
        expected = decay * expected + (1 - decay) * (step + 1)
        assert float(average.values["a"]) == pytest.approx(expected)


def test_early_steps_do_not_linger() -> None:
    # A thousand steps at 1 after a start at 0: with a decay of 0.999 from the first step, 0.37 of it would be left.
    average, one = Average({"a": torch.zeros(1)}, decay=0.999), {"a": torch.ones(1)}
    for step in range(1000):
        average.update(one, step)
    assert float(average.values["a"]) > 1 - 1e-6


def test_a_constant_is_its_own_average_and_decay_zero_is_the_last_value() -> None:
    constant = {"a": torch.tensor([3.0, -1.0]), "b": torch.full((2, 3), 0.5)}
    average = Average(constant, decay=0.9)
    for step in range(20):
        average.update(constant, step)
    assert all(torch.equal(average.values[name], constant[name]) for name in constant)
    last = Average(constant, decay=0.0)
    last.update({name: 2 * value for name, value in constant.items()}, 100)
    assert torch.equal(last.values["b"], torch.ones(2, 3))


def test_half_precision_is_averaged_in_single_and_written_back_in_half() -> None:
    live = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    average = Average({"a": live}, decay=0.999)
    assert average.values["a"].dtype == torch.float32
    assert not average.values["a"].requires_grad
    with torch.no_grad():
        live += 1 / 128
    average.update({"a": live}, 10_000)
    assert 1 < float(average.values["a"][0]) < 1.0001  # finer than bfloat16 can tell


def test_the_average_does_not_share_memory_with_what_it_averages() -> None:
    live = torch.ones(2)
    average = Average({"a": live}, decay=0.9)
    live.fill_(7)
    assert average.values["a"].tolist() == [1, 1]
