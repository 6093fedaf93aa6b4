"""One frozen base and a LoRA for each role: teacher, student, fake score and target network share the base's weights.

Which LoRA acts is part of a call and never a state that outlives it: a loss may call several roles before the first
backward. peft's own switch, `set_adapter`, also takes the gradient of every other LoRA away, and gradient checkpointing
computes a block again when another role acts; neither raises an error (peft issues 2436 and 2832).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from raystill.models.weights import ADAPTER, Lora, add_fresh_lora


class Role(nn.Module):
    """A network of its own to its callers: the shared base with one LoRA, or with none, as the teacher is."""

    def __init__(self, base: nn.Module, adapter: str | None) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """Call the base while this role's LoRA acts."""
        with acting(layers_of(self.base), self.adapter):
            return self.base(*arguments, **named)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """The base's weights and this role's LoRA, under the names that they have in a network of one LoRA."""
        if not recurse:  # the base's own modules have them
            return
        for name, parameter in self.base.named_parameters(prefix, recurse, remove_duplicate):
            owner = _owner(name)
            if owner is None:
                yield name, parameter
            elif owner == self.adapter:
                yield name.replace(f".{owner}.", f".{ADAPTER}."), parameter

    def get_parameter(self, target: str) -> nn.Parameter:
        """A weight of the base or of this role's LoRA, by the names of `named_parameters`."""
        return dict(self.named_parameters())[target]

    def get_submodule(self, target: str) -> nn.Module:
        """A module of the base by its own name."""
        return self.base.get_submodule(target)

    def train(self, mode: bool = True) -> "Role":
        """Nothing: the base stays in evaluation mode for all roles, so that they are the same function."""
        del mode
        return self


def _owner(name: str) -> str | None:
    """The LoRA that a parameter of a base belongs to; None for the base's own."""
    parts = name.split(".")
    places = [i for i, one in enumerate(parts) if one.startswith("lora_")]
    return parts[places[0] + 1] if places and places[0] + 1 < len(parts) else None


def shared(base: nn.Module, lora: Lora, roles: Sequence[str]) -> dict[str, Role]:
    """The roles of a base, frozen from now on, by name, with a fresh LoRA for each; the first one's has the name that
    a network of one LoRA has.
    """
    base.eval().requires_grad_(False)
    names = dict(zip(roles, (ADAPTER, *roles[1:]), strict=True))
    for adapter in names.values():
        add_fresh_lora(base, lora, adapter)
    for name, parameter in base.named_parameters():  # adding a LoRA has frozen those before it
        parameter.requires_grad_(_owner(name) is not None)
    return {role: Role(base, adapter) for role, adapter in names.items()}


def copied(role: Role, lora: Lora, name: str) -> Role:
    """Another role of the same base, whose LoRA has the values of the first one's; no random number is drawn."""
    with torch.random.fork_rng(devices=[]):  # LoRAs begin on the CPU
        add_fresh_lora(role.base, lora, name)
    role.base.__dict__.pop("_lora_layers", None)
    for own, parameter in role.base.named_parameters():
        parameter.requires_grad_(_owner(own) is not None)
    made = Role(role.base, name)
    copy_role(role, made)
    return made


def layers_of(base: nn.Module) -> list[Any]:
    """The layers of a base that have LoRAs."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: list[Any] | None = base.__dict__.get("_lora_layers")
    if found is None:
        found = base.__dict__["_lora_layers"] = [m for m in base.modules() if isinstance(m, BaseTunerLayer)]
        state = _state(found)
        for layer in found:  # alike from now on, whatever adding LoRAs left
            layer._disable_adapters, layer._active_adapter = state
    return found


@contextmanager
def acting(layers: Sequence[Any], adapter: str | None) -> Iterator[None]:
    """Let one LoRA act in these layers, or none, and then what acted before."""
    before = _state(layers)
    try:
        _set(layers, (True, before[1]) if adapter is None else (False, [adapter]))
        yield
    finally:
        _set(layers, before)


def remembering(base: nn.Module) -> Callable[..., Any]:
    """A function for `enable_gradient_checkpointing` that computes a block again as the role that acted at first."""

    def run(block: Callable[..., Any], *arguments: Any) -> Any:
        layers = layers_of(base)
        then = _state(layers)

        def again(*same: Any) -> Any:
            before = _state(layers)
            try:
                _set(layers, then)
                return block(*same)
            finally:
                _set(layers, before)

        return checkpoint(again, *arguments, use_reentrant=False)

    return run


def _state(layers: Sequence[Any]) -> tuple[bool, Any]:
    """Whether no LoRA acts, and which one: the same in all layers, since only `_set` changes it."""
    return layers[0]._disable_adapters, layers[0]._active_adapter


def _set(layers: Sequence[Any], state: tuple[bool, Any]) -> None:
    if state != _state(layers):
        for layer in layers:
            layer._disable_adapters, layer._active_adapter = state


@torch.no_grad()
def copy_role(of: Role, to: Role) -> None:
    """Give one role's LoRA the values of another's."""
    values: dict[str, Tensor] = {name: p.data for name, p in of.named_parameters() if _owner(name) is not None}
    for name, parameter in to.named_parameters():
        if name in values:
            parameter.copy_(values[name])
