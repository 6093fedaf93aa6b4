"""Exponential moving averages of trainable tensors, and target networks that follow a trained one."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of named tensors over steps, in float32 on the tensors' device; its decay warms up, so
    that the first values are soon forgotten.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.values = {name: t.detach().float().clone() for name, t in tensors.items()}

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move the average towards `tensors` after `step` updates, with decay min(decay, (1 + step) / (10 + step))."""
        decay = min(self.decay, (1 + step) / (10 + step))
        names = list(self.values)
        current = [tensors[name].detach().float() for name in names]
        torch._foreach_lerp_([self.values[name] for name in names], current, 1 - decay)


class Follower:
    """A frozen network whose tensors follow the trained ones of a role: the target network of consistency methods."""

    def __init__(self, module: nn.Module, of: str, keep: Callable[[int], float]) -> None:
        """Follow the role named `of`: `module` is a copy of that role's network, and `keep(step)` the share of its own
        value that a tensor keeps at a training step.
        """
        self.of, self.keep = of, keep
        self.tensors = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
        self.module = module.requires_grad_(False)

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move the network's tensors towards the role's tensors of the same names, at a training step."""
        names = list(self.tensors)
        current = [tensors[name].detach().to(self.tensors[name].dtype) for name in names]
        torch._foreach_lerp_([self.tensors[name] for name in names], current, 1 - self.keep(step))

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the network's tensors to saved values."""
        for name, tensor in self.tensors.items():
            tensor.copy_(tensors[name])
