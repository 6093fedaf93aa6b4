"""The weights of a network that a student trains, LoRA or all of them, and the form in which adapters carry them."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced

ADAPTER = "default"
Network: TypeAlias = Any  # a UNet or transformer of diffusers, which take seconds to import


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Settings of a LoRA; its update starts at zero, so that a student starts as its teacher."""

    rank: int = introduced(32)  # of the update of every layer
    alpha: float = introduced(32.0)  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = introduced((  # names of the layers that get a LoRA, in every block
        "conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2",
        "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
    ))  # fmt: skip
    # precision in which the frozen weights are kept while the LoRA, in float32, is trained: "float32" or "bfloat16",
    # half the memory
    base: str = introduced("float32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Training of every weight; adapters carry W - W_base, which other fine-tunes of the base can take, too."""


Weights: TypeAlias = Lora | Full


def peft_config(lora: Lora) -> Any:
    """The settings of a LoRA in peft's form, a LoraConfig."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
    )


def prepare(network: Network, weights: Weights) -> Network:
    """Return a network with its trained part made trainable: every weight, or a fresh LoRA beside frozen weights;
    UserError where no target names a layer.
    """
    if isinstance(weights, Full):
        network.requires_grad_(True)
        return network
    network.requires_grad_(False)
    add_fresh_lora(network, weights, ADAPTER)
    return network


def add_fresh_lora(network: Network, lora: Lora, name: str) -> None:
    """Add a LoRA to a network, in float32 whatever the network is kept in: AdamW loses small updates in bfloat16.
    UserError where no target names a layer.
    """
    from peft import inject_adapter_in_model

    names = [name for name, _ in network.named_modules()]
    absent = [t for t in lora.targets if not any(n == t or n.endswith("." + t) for n in names)]
    if len(absent) == len(lora.targets):
        raise UserError(
            f"weights.targets name no layer of the {type(network).__name__}: {', '.join(absent)}; expected names such "
            "as to_q, to_v, conv1"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # there may be other LoRAs
        inject_adapter_in_model(peft_config(lora), network, name)
    for own, parameter in network.named_parameters():
        if f".{name}." in own and "lora_" in own:
            parameter.data = parameter.data.float()


def load_trained(network: Network, tensors: Mapping[str, Tensor]) -> None:
    """Write trained tensors, named as the network's own parameters, into one that `prepare` made trainable with the
    same settings; UserError where names or shapes differ.
    """
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if different := set(parameters) ^ set(tensors):
        raise UserError(
            f"there are {len(tensors)} trained tensors, the network takes {len(parameters)}; first difference: "
            f"{min(different)}. Use the weights settings that they were trained with"
        )
    for name, tensor in tensors.items():
        taken = parameters[name].shape
        if taken != tensor.shape:
            raise UserError(
                f"the trained {name} has shape {tuple(tensor.shape)}, the network takes {tuple(taken)}. "
                "Use the weights.rank that it was trained with"
            )
        parameters[name].data.copy_(tensor)


def merge(network: Network) -> None:
    """Merge a network's LoRA, where it has one, into its weights, so that a call costs what a call of the teacher
    costs, and nothing of the LoRA is left.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module.get_base_layer())
    if hasattr(network, "peft_config"):
        del network.peft_config


def lora_state(network: Network) -> dict[str, Tensor]:
    """The tensors of a network's LoRA under peft's names, which adapter directories carry."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    return state


def add_lora(network: Network, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Add a LoRA's tensors, under peft's names, to the weights of a network; UserError where they are for another."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    try:
        inject_adapter_in_model(LoraConfig(**settings), network, ADAPTER)
        loaded = set_peft_model_state_dict(network, dict(tensors), ADAPTER)
    except (RuntimeError, ValueError) as error:  # other shapes, or other names
        raise UserError(f"the adapter is for another network; give a fine-tune of its base ({error})") from error
    absent = [name for name in loaded.missing_keys if "lora_" in name]
    if strange := [*loaded.unexpected_keys, *absent]:
        raise UserError(
            f"the adapter is for another network; give a fine-tune of its base (first difference: {strange[0]})"
        )
    merge(network)


def delta(network: Network, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta W - W_base of trained tensors from those of the base network, float32, on the CPU (2405.07510)."""
    base = dict(network.named_parameters())
    return {name: tensor.float().cpu() - base[name].detach().float().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def add_delta(network: Network, gained: Mapping[str, Tensor]) -> None:
    """Add a delta in place to the weights of the base or another fine-tune of it, W + (W' - W_base); UserError where
    names or shapes do not fit.
    """
    parameters = dict(network.named_parameters())
    strange = [n for n, t in gained.items() if n not in parameters or parameters[n].shape != t.shape]
    if strange or not gained:
        raise UserError(
            f"the delta is for another network: {', '.join(strange[:3]) or 'it is empty'}; give a fine-tune of its base"
        )
    for name, tensor in gained.items():
        parameters[name].add_(tensor.to(parameters[name]))
