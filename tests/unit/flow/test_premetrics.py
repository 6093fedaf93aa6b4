"""Distances: of nothing 0, of more more, and the limits that their names say."""

import pytest
import torch

from raystill.config.errors import UserError
from raystill.flow.premetrics import Premetric, PseudoHuber, SquaredError, VectorHuber

EVERY: list[Premetric] = [SquaredError(), PseudoHuber(), VectorHuber()]


def error(scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(4, 2, 3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("premetric", EVERY, ids=str)
def test_a_distance_is_0_at_0_and_grows_and_is_each_sample_s_own(premetric: Premetric) -> None:
    assert premetric.per_sample(torch.zeros(3, 2, 4, 4)).tolist() == [0, 0, 0]
    small, large = premetric.per_sample(error()), premetric.per_sample(error(2.0))
    assert small.shape == (4,)
    assert bool((large > small).all())
    torch.testing.assert_close(premetric.per_sample(error()[1:2]), small[1:2])


def test_small_errors_are_squared_and_large_ones_are_not() -> None:
    c = 1e-3
    for premetric, of_one in ((PseudoHuber(c=c), 1), (VectorHuber(c=c), 30)):
        near = premetric.per_sample(error(1e-7))
        torch.testing.assert_close(near, SquaredError().per_sample(error(1e-7)) / (2 * c * of_one), rtol=1e-4, atol=0)
    torch.testing.assert_close(PseudoHuber(c=1e-9).per_sample(error()), error().abs().flatten(1).mean(1))
    torch.testing.assert_close(VectorHuber(c=1e-9).per_sample(error()), error().flatten(1).norm(dim=1) / 30)


@pytest.mark.parametrize("kind", [PseudoHuber, VectorHuber])
def test_a_constant_is_above_0(kind: type[PseudoHuber | VectorHuber]) -> None:
    with pytest.raises(UserError, match="the constant of a Huber distance is 0"):
        kind(c=0.0)
