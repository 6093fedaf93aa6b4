"""Tensors as the arrays of stored rows, and back. An entry of a mapping is stored by itself, as `condition.prompt`;
bfloat16, which numpy does not have, as integers of its bits, under a name that ends in `.bf16`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

BITS = ".bf16"


def arrays_of(made: Mapping[str, Tensor | Mapping[str, Tensor] | None]) -> dict[str, np.ndarray]:
    """The arrays of tensors and of mappings of tensors by the names that rows have them under; None is left out."""
    found: dict[str, np.ndarray] = {}
    for name, value in made.items():
        if isinstance(value, Mapping):
            found |= arrays_of({f"{name}.{inner}": tensor for inner, tensor in value.items()})
        elif value is not None:
            own = value.detach().cpu()
            half = own.dtype is torch.bfloat16
            found[name + BITS if half else name] = (own.view(torch.uint16) if half else own).numpy()
    return found


def batch_of(columns: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of columns by their names in rows: arrays become tensors, those of one mapping a mapping; all else stays
    as it is.
    """
    batch: dict[str, Any] = {}
    for name, value in columns.items():
        if not isinstance(value, np.ndarray):
            batch[name] = value
            continue
        tensor = torch.from_numpy(value)
        if name.endswith(BITS):
            tensor = tensor.view(torch.bfloat16)
        outer, _, inner = name.removesuffix(BITS).partition(".")
        if inner:
            batch.setdefault(outer, {})[inner] = tensor
        else:
            batch[outer] = tensor
    return batch


def to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Move a batch's tensors without waiting for the copies; float16, in which latents may be stored, becomes
    float32.
    """

    def moved(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: moved(inner) for name, inner in value.items()}
        if not isinstance(value, Tensor):
            return value
        found = value.to(device, non_blocking=True)
        return found.float() if found.dtype is torch.float16 else found

    return {name: moved(value) for name, value in batch.items()}
