"""Random numbers of training steps, of the starts of samples and of probes: a counter generator with a 128-bit key.

torch's CPU generator keeps 32 bits of a seed, so that hashed seeds collide: of 200,000 about 5 repeat another one's
numbers, of 10 million about 12,000.
"""

import hashlib
import json

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.random import Generator, Philox
from torch import Tensor


class RandomStream:
    """Random numbers on the CPU, a function of the stream's key and of what was drawn from it before: Philox-4x64-10
    (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, 2011), which encrypts a counter.
    """

    def __init__(self, key: int) -> None:
        self._numbers = Generator(Philox(key=key))
        self.part = (0, 1)  # the stream's part of every bin of stratified numbers, and the parts (`share_bins`)

    def share_bins(self, place: int, places: int) -> "RandomStream":
        """Have this stream put its stratified numbers into part `place` of `places` equal parts of every bin, and
        return the stream: numbers of `places` such streams cover [0, 1) evenly together, too. `place` is drawn at
        random, else a stream's numbers would not be uniform.
        """
        self.part = (place, places)
        return self

    @classmethod
    def of(cls, *names: int | str) -> "RandomStream":
        """The stream of a purpose, a seed and whatever else tells it from others: its key is the first 128 bits of the
        SHA-256 of the names as JSON, where 1 and "1" differ, and so do ("ab", "c") and ("a", "bc").
        """
        found = hashlib.sha256(json.dumps(names, separators=(",", ":")).encode()).digest()
        return cls(int.from_bytes(found[:16], "big"))

    def key(self) -> int:
        """128 random bits: the key of another stream, for what is drawn inside a module."""
        return int.from_bytes(self._numbers.bytes(16), "little")

    def normal(self, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Float[Tensor, "..."]:
        """N(0, 1) numbers, float32 or float64; ValueError for another dtype."""
        match dtype:
            case torch.float32:
                return torch.from_numpy(self._numbers.standard_normal(shape, dtype=np.float32))
            case torch.float64:
                return torch.from_numpy(self._numbers.standard_normal(shape, dtype=np.float64))
        raise ValueError(f"normal numbers are drawn as float32 or float64 and then converted, found {dtype}")

    def uniform(self, count: int) -> Float64[Tensor, " count"]:
        """Uniform random numbers in [0, 1), multiples of 2^-53."""
        return torch.from_numpy(self._numbers.random(count))

    def integers(self, low: int, high: int, count: int) -> Int64[Tensor, " count"]:
        """Uniform random integers from `low` to `high` - 1."""
        return torch.from_numpy(self._numbers.integers(low, high, count))

    def permutation(self, count: int) -> Int64[Tensor, " count"]:
        """The numbers from 0 to `count` - 1 in random order."""
        return torch.from_numpy(self._numbers.permutation(count))

    def stratified(self, count: int) -> Float64[Tensor, " count"]:
        """One uniform number in each of `count` equal bins of [0, 1), in random order: each is uniform by itself, and
        together they cover the whole.
        """
        place, places = self.part
        return (self.permutation(count) + (place + self.uniform(count)) / places) / count

    def weighted(self, weights: Float[Tensor, " choices"], count: int) -> Int64[Tensor, " count"]:
        """Random indices, each drawn with a probability proportional to its weight; ValueError where a weight is
        negative.
        """
        shares = weights.double() / weights.double().sum()
        return torch.from_numpy(self._numbers.choice(len(shares), count, p=shares.numpy()))
