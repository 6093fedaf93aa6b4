"""Noise that is dealt out to the latents near it is the same noise."""

import torch

from raystill.flow.randomness import RandomStream
from raystill.methods.coupling import noise_for


def test_immiscible_noise_is_the_same_noise_nearer_to_its_latents() -> None:
    x_0 = torch.randn(16, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    plain, dealt = (noise_for(x_0, RandomStream.of(2), immiscible=flag) for flag in (False, True))
    assert not torch.equal(plain, dealt)
    order = [next(i for i, one in enumerate(plain) if torch.equal(one, other)) for other in dealt]
    assert sorted(order) == list(range(16))
    gap, own = ((x_0 - noise).square().sum() for noise in (plain, dealt))
    assert float(own) < float(gap)
    swapped = dealt.clone()
    for i in range(15):  # no exchange of two is better
        swapped[[i, i + 1]] = dealt[[i + 1, i]]
        assert float((x_0 - swapped).square().sum()) >= float(own)
        swapped[[i, i + 1]] = dealt[[i, i + 1]]


def test_noise_is_dealt_out_in_half_precision_too() -> None:
    x_0 = torch.randn(16, 2, 3, 4, generator=torch.Generator().manual_seed(1))
    whole, half = (noise_for(x, RandomStream.of(2), immiscible=True) for x in (x_0, x_0.bfloat16()))
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, whole.bfloat16())  # rounding does not change who is near whom here
