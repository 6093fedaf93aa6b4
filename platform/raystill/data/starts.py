"""The random starts of samples: the noise from which teachers and students begin to sample."""

import hashlib

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.flow.randomness import RandomStream


def start_of(
    key: str, seed: int, shape: tuple[int, int, int], revision: int = 2
) -> Float[Tensor, "channels height width"]:
    """The N(0, I) start of one sample, a function of its key and the seed; revision 1 is torch's generator, which keeps
    32 bits of a seed: of 10 million starts about 12,000 repeat another one.
    """
    if revision == 1:
        number = int.from_bytes(hashlib.sha256(f"{seed}/{key}".encode()).digest()[:8], "big") % 2**63
        return torch.randn(shape, generator=torch.Generator().manual_seed(number))
    return RandomStream.of("start", seed, key).normal(shape)
