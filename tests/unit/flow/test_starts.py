"""The law that sampling starts from: its draws, its JSON, and what it refuses."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raystill.config.errors import UserError
from raystill.flow.starts import StartLaw

FITTED = StartLaw(law="channel_normal", mean=(0.5, -1.0, 0.0), std=(0.25, 2.0, 1.0))
numbers = st.floats(-5, 5)


@pytest.mark.parametrize("shape", [(400, 3, 5, 7), (400, 3, 3, 3)])
def test_draws_have_the_law_s_mean_and_spread_per_channel(shape: tuple[int, ...]) -> None:
    drawn = FITTED.apply(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    assert drawn.dtype == torch.float32
    for channel, (mean, std) in enumerate(zip(FITTED.mean, FITTED.std, strict=True)):
        assert float(drawn[:, channel].mean()) == pytest.approx(mean, abs=0.08)
        assert float(drawn[:, channel].std()) == pytest.approx(std, rel=0.05)


def test_a_standard_normal_start_is_left_alone() -> None:
    z = torch.randn(2, 4, 3, 5)
    assert StartLaw().apply(z) is z


@given(st.lists(st.tuples(numbers, st.floats(1e-3, 5)), min_size=1, max_size=6))
def test_json_reads_back(channels: list[tuple[float, float]]) -> None:
    law = StartLaw(law="channel_normal", mean=tuple(m for m, _ in channels), std=tuple(s for _, s in channels))
    for one in (law, StartLaw()):
        assert StartLaw.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_json_is_the_form_that_cards_carry() -> None:
    assert StartLaw().to_json() == {"law": "normal"}
    assert FITTED.to_json() == {"law": "channel_normal", "mean": [0.5, -1.0, 0.0], "std": [0.25, 2.0, 1.0]}


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "has law, mean and std, found \\[\\]"),
        ({"law": "normal", "jump": "ode"}, "found \\['jump', 'law'\\]"),
        ({"law": "normal", "mean": [0.0], "std": [1.0]}, "'normal' has none"),
        ({"law": "channel_normal"}, "one of each per latent channel"),
        ({"law": "channel_normal", "mean": [0.0, 1.0], "std": [1.0]}, "one of each per latent channel"),
        ({"law": "channel_normal", "mean": [0.0], "std": [0.0]}, "spreads greater than 0"),
        ({"law": "channel_normal", "mean": [float("nan")], "std": [1.0]}, "must be finite"),
    ],
)
def test_what_is_no_law_says_what_to_write(found: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        StartLaw.from_json(found)


def test_a_law_of_other_channels_is_refused() -> None:
    with pytest.raises(UserError, match="3 channels and the latent has 4"):
        FITTED.apply(torch.zeros(2, 4, 3, 3))
