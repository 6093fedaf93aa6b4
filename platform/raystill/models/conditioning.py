"""What a network is told beside a latent and a time: tensors by name, with the batch first."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool
from torch import Tensor

EMPTY = "empty.safetensors"  # file of the condition of guidance's other branch, beside stored targets
Condition = dict[str, Tensor]  # the names are a family's own (`models.backbones`); all tensors have as many rows


def rows_of(condition: Condition) -> int:
    """The number of samples of a condition."""
    return len(next(iter(condition.values())))


def moved(condition: Condition, device: torch.device) -> Condition:
    """A condition on a device, without waiting for the copies."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in condition.items()}


def expanded(condition: Condition, count: int) -> Condition:
    """A condition of one row as one of `count` equal rows, without copies."""
    return {name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in condition.items()}


def joined(first: Condition, second: Condition) -> Condition:
    """The rows of two conditions, one after the other; a first one of one row has as many as the second.

    Names that only the second has are for both: what a sample is told beside its caption, such as the size of a
    picture, is the same without the caption.
    """
    count, found = rows_of(second), {}
    for name, tensor in second.items():
        before = first.get(name, tensor)
        found[name] = torch.cat([before.expand(count, *before.shape[1:]), tensor])
    return found


def chosen(mask: Bool[Tensor, " batch"], first: Condition, second: Condition) -> Condition:
    """The rows of the first condition, or its only row, where the mask is true, of the second one elsewhere; names
    that only the second has are the second's.
    """

    def pick(name: str, other: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (other.ndim - 1)), first[name], other) if name in first else other

    return {name: pick(name, tensor) for name, tensor in second.items()}


def part(condition: Condition, places: slice | Tensor) -> Condition:
    """Some rows of a condition."""
    return {name: tensor[places] for name, tensor in condition.items()}


def split(condition: Condition, size: int) -> Iterator[Condition]:
    """Parts of at most `size` rows, in order."""
    return (part(condition, slice(i, i + size)) for i in range(0, rows_of(condition), size))


def concatenated(parts: list[Condition]) -> Condition:
    """The rows of conditions of the same names, one after the other."""
    return {name: torch.cat([one[name] for one in parts]) for name in parts[0]}
