"""The engine of a module that is whole and equal on every rank, and whose updates never wait for the device: of small
ones, and of LoRAs beside the student's on one base.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raystill.engine.local import LocalEngine
from raystill.engine.protocol import NonFiniteError, Optimizer


class ReplicatedEngine(LocalEngine):
    """AdamW on gradients that are averaged over ranks in one collective, without a host-device synchronisation.

    Numbers that are not finite stop the run where the state is saved, so that no checkpoint holds them, and not before
    the update. So another engine that checks its numbers in every step must depend on the module's outputs, as the
    student's engine does: the student's loss is weighted by the learned law of times.
    """

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, device: torch.device | str = "cpu", *, world_size: int = 1
    ) -> None:
        """Move `module` to `device`; every rank takes rank 0's parameters. Collective where there are several ranks."""
        super().__init__(module, optimizer, device)
        self._world_size = world_size
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        if world_size > 1:
            for parameter in self._named.values():
                dist.broadcast(parameter.data, 0)  # COLLECTIVE

    def step(self, learning_rate: float) -> Tensor:
        """Average the gradients, clip, update, zero; returns the mean's norm before clipping, shape (). Collective."""
        if self._world_size > 1:
            self._average()
        norm = self._clip()
        self._finite &= torch.isfinite(norm + self._loss)
        return self._update(learning_rate, norm)

    def save(self, directory: Path) -> None:
        """Write parameters and optimizer state; `NonFiniteError` on every rank after a non-finite loss or gradient."""
        # HOST SYNC: one a checkpoint.
        if not bool(self._finite):
            raise NonFiniteError("a gradient or loss was not finite since the last checkpoint; no other was written")
        super().save(directory)

    def _average(self) -> None:
        """Replace every gradient, and the loss, by its mean over ranks."""
        parameters = list(self._named.values())
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([*(grad.flatten() for grad in grads), self._loss[None]])
        dist.all_reduce(flat)  # COLLECTIVE
        *parts, loss = (flat / self._world_size).split([*(p.numel() for p in parameters), 1])
        self._loss.copy_(loss[0])
        for parameter, part in zip(parameters, parts, strict=True):
            parameter.grad = part.view_as(parameter)
