"""The weights of a UNet that a student trains, LoRA or all of them, and the form in which adapters carry them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced

ADAPTER = "default"
UNet: TypeAlias = Any  # diffusers' UNet2DConditionModel, which takes seconds to import


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Settings of a LoRA; its update starts at zero, so that a student starts as its teacher."""

    rank: int = introduced(32)  # of the update of every layer
    alpha: float = introduced(32.0)  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = introduced((  # names of the layers that get a LoRA, in every block
        "conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2",
        "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
    ))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Training of every UNet weight; adapters carry W - W_base, which other fine-tunes of the base can take, too."""


Weights: TypeAlias = Lora | Full


def peft_config(lora: Lora) -> Any:
    """The settings of a LoRA in peft's form, a LoraConfig."""
    from peft import LoraConfig

    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
    )


def prepare(unet: UNet, weights: Weights) -> UNet:
    """Return a UNet with its trained part made trainable: every weight, or a fresh LoRA beside frozen weights;
    UserError where no target names a layer.
    """
    if isinstance(weights, Full):
        unet.requires_grad_(True)
        return unet
    names = [name for name, _ in unet.named_modules()]
    absent = [t for t in weights.targets if not any(n == t or n.endswith("." + t) for n in names)]
    if len(absent) == len(weights.targets):
        raise UserError(
            f"weights.targets name no layer of the UNet: {', '.join(absent)}; expected names such as to_q, to_v, conv1"
        )
    unet.requires_grad_(False)
    unet.add_adapter(peft_config(weights), ADAPTER)
    return unet


def load_trained(unet: UNet, tensors: Mapping[str, Tensor]) -> None:
    """Write trained tensors, named as the UNet's own parameters, into a UNet that `prepare` made trainable with the
    same settings; UserError where names or shapes differ.
    """
    parameters = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    if different := set(parameters) ^ set(tensors):
        raise UserError(
            f"there are {len(tensors)} trained tensors, the UNet takes {len(parameters)}; first difference: "
            f"{min(different)}. Use the weights settings that they were trained with"
        )
    for name, tensor in tensors.items():
        taken = parameters[name].shape
        if taken != tensor.shape:
            raise UserError(
                f"the trained {name} has shape {tuple(tensor.shape)}, the UNet takes {tuple(taken)}. "
                "Use the weights.rank that it was trained with"
            )
        parameters[name].data.copy_(tensor)


def merge(unet: UNet, weights: Weights) -> None:
    """Merge a LoRA into the UNet's weights, so that a call costs what a call of the teacher costs."""
    if isinstance(weights, Lora):
        unet.fuse_lora()


def lora_state(unet: UNet) -> dict[str, Tensor]:
    """The tensors of a UNet's LoRA under peft's names, which adapter directories carry."""
    from peft import get_peft_model_state_dict

    state: dict[str, Tensor] = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    return state


def delta(unet: UNet, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The delta W - W_base of trained tensors from those of the base UNet, float32, on the CPU (2405.07510)."""
    base = dict(unet.named_parameters())
    return {name: tensor.float().cpu() - base[name].detach().float().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def add_delta(unet: UNet, gained: Mapping[str, Tensor]) -> None:
    """Add a delta in place to the weights of the base or another fine-tune of it, W + (W' - W_base); UserError where
    names or shapes do not fit.
    """
    parameters = dict(unet.named_parameters())
    strange = [n for n, t in gained.items() if n not in parameters or parameters[n].shape != t.shape]
    if strange or not gained:
        raise UserError(
            f"the delta is for another UNet: {', '.join(strange[:3]) or 'it is empty'}; give a fine-tune of its base"
        )
    for name, tensor in gained.items():
        parameters[name].add_(tensor.to(parameters[name]))
