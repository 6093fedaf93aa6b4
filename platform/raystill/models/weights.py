"""What of a UNet a student trains: low-rank adapters, or all of it; and what it carries away."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import introduced

ADAPTER = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Shape of an adapter; it starts as the identity, so a student starts as its teacher."""

    rank: int = introduced(32)
    alpha: float = introduced(32.0)  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = introduced((  # names of the layers that get an adapter, in every block
        "conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2",
        "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
    ))  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """Every weight of the UNet; what is carried is the delta, which other fine-tunes of the same base can take, too."""


Weights: TypeAlias = Lora | Full


def peft_config(lora: Lora) -> LoraConfig:
    """The adapter's settings as peft takes them."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
    )


def prepare(unet: UNet2DConditionModel, weights: Weights) -> UNet2DConditionModel:
    """Make trainable what is to be trained: all, or a fresh adapter beside the frozen rest; UserError where a target
    names no layer.
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


def load_trained(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> None:
    """Write trained tensors, named as the UNet's own parameters, into a UNet that was prepared alike; UserError where
    they are of another one.
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


def merge(unet: UNet2DConditionModel, weights: Weights) -> None:
    """Fold an adapter into the weights, so that a call costs what the teacher's does."""
    if isinstance(weights, Lora):
        unet.fuse_lora()


def lora_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names, which artifacts carry."""
    state: dict[str, Tensor] = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    return state


def delta(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What trained tensors have gained over the base's, float32: W - W_base (2405.07510)."""
    base = dict(unet.named_parameters())
    return {name: tensor.float().cpu() - base[name].detach().float().cpu() for name, tensor in tensors.items()}


@torch.no_grad()
def add_delta(unet: UNet2DConditionModel, gained: Mapping[str, Tensor]) -> None:
    """W + (W' - W_base), in place, for the base or another fine-tune of it; UserError where the shapes are others."""
    parameters = dict(unet.named_parameters())
    strange = [n for n, t in gained.items() if n not in parameters or parameters[n].shape != t.shape]
    if strange or not gained:
        raise UserError(
            f"the delta is for another UNet: {', '.join(strange[:3]) or 'it is empty'}; give a fine-tune of its base"
        )
    for name, tensor in gained.items():
        parameters[name].add_(tensor.to(parameters[name]))
