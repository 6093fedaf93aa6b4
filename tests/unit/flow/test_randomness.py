"""Random numbers against the published cipher, their laws, and their keys."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from raystill.flow.randomness import RandomStream

COUNT = 200_000
WORD, MULTIPLIERS, STEPS = 2**64 - 1, (0xD2E7470EE14C6C93, 0xCA5A826395121157), (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
# Random123 1.14, tests/kat_vectors: counter, key and block of philox4x64 with 10 rounds.
PUBLISHED = {
    "zeros": ((0,) * 4, (0,) * 2, (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B)),
    "ones": (
        (WORD,) * 4,
        (WORD,) * 2,
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    "pi": (
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
}

# Drawn in this order from the stream "frozen", 0.
KEY = 172561108002375657569254326831789712959
NORMAL = [-0.34232619404792786, -1.660757064819336, 0.9299787282943726, -0.5388969779014587]
DOUBLE = [-1.152547030371399, -2.185248671607409]
UNIFORM = [0.17762716969268688, 0.6194318934050872]
INTEGERS = [56, 352, 766, 293]
PERMUTATION = [2, 0, 1, 6, 3, 7, 5, 4]
WEIGHTED = [1, 5, 6, 3, 4, 2, 7, 7]


def philox(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, section 3.3, with numbers of 64 bits."""
    a, b, c, d = counter
    for i in range(10):
        k, m = ((key[j] + i * STEPS[j]) & WORD for j in (0, 1))
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b, c, d = (right >> 64) ^ b ^ k, right & WORD, (left >> 64) ^ d ^ m, left & WORD
    return a, b, c, d


@pytest.mark.parametrize("name", PUBLISHED)
def test_numbers_are_those_of_the_published_cipher(name: str) -> None:
    counter, key, block = PUBLISHED[name]
    assert philox(counter, key) == block
    whole = sum(word << 64 * i for i, word in enumerate(key))
    before = (sum(word << 64 * i for i, word in enumerate(counter)) - 1) % 2**256  # numpy counts, then encrypts
    assert tuple(np.random.Philox(key=whole, counter=before).random_raw(4).tolist()) == block
    words = [word for i in (1, 2, 3) for word in philox((i, 0, 0, 0), key)]
    assert RandomStream(whole).uniform(12).tolist() == [(word >> 11) / 2**53 for word in words]


def test_numbers_stay_what_they_were() -> None:
    """Those that runs were made with: where another numpy draws others, every method's revision is to be raised."""
    stream = RandomStream.of("frozen", 0)
    assert stream.key() == KEY
    assert stream.normal((2, 2)).flatten().tolist() == NORMAL
    assert stream.normal((2,), torch.float64).tolist() == DOUBLE
    assert stream.uniform(2).tolist() == UNIFORM
    assert stream.integers(-3, 1000, 4).tolist() == INTEGERS
    assert stream.permutation(8).tolist() == PERMUTATION
    assert stream.weighted(torch.arange(1.0, 9.0), 8).tolist() == WEIGHTED


def test_other_names_are_another_stream() -> None:
    names: list[tuple[int | str, ...]] = [
        (), (0,), ("0",), (0, 0), ("00",), (1, 23), (12, 3), ("1", 23), ("12", "3"), ('1","2',), ("1", "2"), (-1,),
        (2**32,), (2**64,), (2**128,), ("step", 0, 0, 0), ("start", 0, 0, 0),
    ]  # fmt: skip
    found = {RandomStream.of(*each).key() for each in names}
    assert len(found) == len(names)
    assert found == {RandomStream.of(*each).key() for each in names}


def test_another_process_draws_the_same() -> None:
    draw = "RandomStream.of('step', 3, 1, 5).normal((4,)).tolist()"
    text = f"from raystill.flow.randomness import RandomStream; print({draw})"
    found = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout
    assert found.strip() == str(RandomStream.of("step", 3, 1, 5).normal((4,)).tolist())


def distance(drawn: Tensor, distribution: Tensor) -> float:
    """Kolmogorov and Smirnov's, in units of 1 / sqrt(n): above 1.63 once in a hundred."""
    n = len(drawn)
    ends = torch.arange(n + 1, dtype=torch.float64) / n
    at = distribution.sort().values
    farthest = float(torch.maximum((at - ends[:-1]).abs().max(), (at - ends[1:]).abs().max()))
    return farthest * math.sqrt(n)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_are_normal(dtype: torch.dtype) -> None:
    drawn = RandomStream.of("normal").normal((COUNT // 8, 8), dtype)
    assert drawn.dtype == dtype
    assert drawn.device.type == "cpu"
    z = drawn.double().flatten()
    with pytest.raises(ValueError, match="float32 or float64"):
        RandomStream.of("normal").normal((1,), torch.bfloat16)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(z.pow(power).mean()) - moment) < 4 * (variance / COUNT) ** 0.5
    assert distance(z, torch.special.ndtr(z)) < 1.63
    neighbours = torch.corrcoef(drawn.double().T) - torch.eye(8)
    assert float(neighbours.abs().max()) < 4.5 / (COUNT / 8) ** 0.5


def test_uniform_numbers_are_uniform_within_a_stream_and_over_streams() -> None:
    within = RandomStream.of("uniform").uniform(COUNT)
    over = torch.cat([RandomStream.of("uniform", 0, i).uniform(1) for i in range(20_000)])
    for drawn in (within, over):
        assert drawn.dtype == torch.float64
        assert bool(((drawn >= 0) & (drawn < 1)).all())
        assert distance(drawn, drawn) < 1.63
    pairs = torch.corrcoef(torch.stack([over[:-1], over[1:]]))[0, 1]
    assert abs(float(pairs)) < 3 / 20_000**0.5


def chi_square(drawn: Tensor, shares: Tensor) -> float:
    """Pearson's statistic less its mean, in standard deviations."""
    expected = shares * len(drawn)
    statistic = float(((torch.bincount(drawn, minlength=len(shares)) - expected).square() / expected).sum())
    return (statistic - (len(shares) - 1)) / math.sqrt(2 * (len(shares) - 1))


def test_integers_permutations_and_weighted_draws_follow_their_laws() -> None:
    stream = RandomStream.of("discrete")
    even = torch.full((7,), 1 / 7, dtype=torch.float64)
    whole = stream.integers(-2, 5, COUNT)
    assert (whole.dtype, int(whole.min()), int(whole.max())) == (torch.int64, -2, 4)
    assert abs(chi_square(whole + 2, even)) < 4
    orders = torch.stack([stream.permutation(7) for _ in range(5000)])
    assert bool((orders.sort(dim=1).values == torch.arange(7)).all())
    for place in range(7):
        assert abs(chi_square(orders[:, place], even)) < 4
    weights = torch.tensor([1.0, 2.0, 4.0, 1.0])
    assert abs(chi_square(stream.weighted(weights, COUNT), weights.double() / 8)) < 4
    assert set(stream.weighted(torch.tensor([0.0, 3.0, 0.0]), 100).tolist()) == {1}
