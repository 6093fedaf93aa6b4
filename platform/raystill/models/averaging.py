"""Exponential moving averages of trainable tensors, and networks that follow others."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Average:
    """Average of named tensors over steps, kept in float32 on the tensors' device; warms up so that early steps do not
    linger.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: t.detach().float().clone() for name, t in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move towards `tensors` after `step` earlier updates, with decay min(decay, (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.values)
        current = [tensors[name].detach().float() for name in names]
        torch._foreach_lerp_([self.values[name] for name in names], current, 1 - decay)


class Follower:
    """A frozen network whose tensors follow the trained ones of a role: the target network of consistency methods."""

    def __init__(self, module: nn.Module, of: str, keep: Callable[[int], float]) -> None:
        """`module` is a copy of the role's, and `keep(step)` the share of its own value that a tensor keeps then."""
        self.of, self.keep = of, keep
        self.tensors = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
        self.module = module.requires_grad_(False)

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move towards the role's tensors of the same names."""
        names = list(self.tensors)
        current = [tensors[name].detach().to(self.tensors[name].dtype) for name in names]
        torch._foreach_lerp_([self.tensors[name] for name in names], current, 1 - self.keep(step))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take saved values."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
