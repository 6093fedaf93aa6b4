"""Exponential moving averages of trainable tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor


class Average:
    """Average of named tensors over steps, kept in float32 on the tensors' device; warms up so that early steps do not
    linger.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: t.detach().float().clone() for name, t in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move towards `tensors` with decay min(decay, (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.values)
        current = [tensors[name].detach().float() for name in names]
        torch._foreach_lerp_([self.values[name] for name in names], current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module_tensors: Mapping[str, Tensor]) -> None:
        """Write the average into tensors of the same names."""
        for name, value in self.values.items():
            module_tensors[name].copy_(value)
