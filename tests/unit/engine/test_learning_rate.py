"""The schedule against its closed form."""

import pytest

from raystill.config.errors import UserError
from raystill.engine.learning_rate import learning_rate
from raystill.engine.protocol import Optimizer

COSINE = Optimizer(learning_rate=0.8, warmup_steps=4, final_fraction=0.25)


def test_warm_up_is_linear_and_wastes_no_step() -> None:
    assert [learning_rate(COSINE, step, 20) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_cosine_passes_the_middle_and_ends_at_the_final_fraction() -> None:
    assert learning_rate(COSINE, 11, 20) == pytest.approx(0.8 * (0.25 + 1.0) / 2)  # half of the 16 steps of decay done
    assert learning_rate(COSINE, 19, 20) == pytest.approx(0.2)


def test_cosine_never_rises_after_the_warm_up() -> None:
    rates = [learning_rate(COSINE, step, 20) for step in range(3, 20)]
    assert rates == sorted(rates, reverse=True)


def test_constant_stays_at_the_peak() -> None:
    optimizer = Optimizer(learning_rate=0.8, warmup_steps=4, decay="constant")
    assert {learning_rate(optimizer, step, 20) for step in range(3, 20)} == {0.8}


def test_no_warm_up_and_a_run_shorter_than_the_warm_up() -> None:
    assert learning_rate(Optimizer(learning_rate=0.8, warmup_steps=0, decay="constant"), 0, 5) == 0.8
    assert learning_rate(Optimizer(learning_rate=0.8, warmup_steps=8), 1, 2) == pytest.approx(0.2)


def test_unknown_decay_says_what_to_write() -> None:
    with pytest.raises(UserError, match='"linear"; write "cosine" or "constant"'):
        learning_rate(Optimizer(decay="linear"), 0, 5)


def test_step_outside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match="step 5 lies outside a run of 5 steps"):
        learning_rate(COSINE, 5, 5)
