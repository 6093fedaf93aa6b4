"""The interface of an engine to the training loop; one engine owns one learner (one role, one optimizer, one graph)."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimizer:
    """Settings of AdamW, its learning-rate schedule and gradient clipping."""

    learning_rate: float = introduced(1e-3)  # reached at the end of the warm-up
    warmup_steps: int = introduced(50)  # updates in which the learning rate rises linearly from 0
    decay: str = introduced("cosine")  # after the warm-up: "cosine" down to final_fraction, or "constant"
    final_fraction: float = introduced(0.05)  # of learning_rate, at the last step of a cosine decay
    beta_1: float = introduced(0.9)
    beta_2: float = introduced(0.99)
    weight_decay: float = introduced(0.0)
    clip_norm: float = introduced(1.0)  # largest norm of all gradients together; the norm before clipping is reported


@runtime_checkable  # so that tests can check annotations
class Engine(Protocol):
    """Updates the trainable parameters of one module; every method marked collective is called by all ranks."""

    @property
    def module(self) -> nn.Module:
        """The module to call in a loss: its forward passes through the engine."""

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of a scalar loss."""

    def step(self, learning_rate: float) -> Tensor:
        """Clip, update and zero the gradients; returns the norm before clipping, shape (). Collective.

        Raises `NonFiniteError` on every rank, before the update, where the norm is not finite on any."""

    def trainable(self) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Give the full trainable tensors by name, on every rank, for reading inside the context. Collective."""

    def save(self, directory: Path) -> None:
        """Write parameters and optimizer state of this rank for resuming. Collective."""

    def load(self, directory: Path) -> None:
        """Restore the parameters and optimizer state that `save` wrote. Collective."""


class NonFiniteError(UserError):
    """A loss or gradient became infinite or NaN; the update was not applied."""
