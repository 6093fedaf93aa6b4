"""The shape of a training method: a pure function from a batch to one loss per role."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Generator, Tensor, nn

Batch = Mapping[str, Any]  # field name -> Tensor with the batch first; "key" holds the sample names as a list
Networks = Mapping[str, nn.Module]  # role -> the module to call (through its engine, for learners)


@dataclass(slots=True)
class Loss:
    """A scalar to minimise, and detached scalars to record beside it by metric name."""

    value: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)
    times: Tensor | None = None  # on the CPU, shape (batch,): named where a number is not finite


@runtime_checkable  # so that tests can check annotations
class Method(Protocol):
    """Losses of one training step; knows no device, engine, cluster or log."""

    @property
    def learners(self) -> tuple[str, ...]:
        """Roles that own an optimizer."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Fields that a batch must have."""

    def turn(self, step: int) -> tuple[str, ...]:
        """Roles that are updated at this step."""

    def losses(self, networks: Networks, batch: Batch, rng: Generator, step: int) -> dict[str, Loss]:
        """One loss per role whose turn it is, on disjoint graphs; all randomness comes from `rng`, a CPU generator."""
