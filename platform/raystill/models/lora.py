"""Low-rank adapters on a UNet."""

from collections.abc import Mapping
from dataclasses import dataclass

from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor

from raystill.config.errors import UserError

ADAPTER = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """Shape of an adapter; it starts as the identity, so a student starts as its teacher."""

    rank: int = 32
    alpha: float = 32.0  # the update is scaled by alpha / rank
    targets: tuple[str, ...] = (  # names of the layers that get an adapter, in every block
        "conv1", "conv2", "conv_shortcut", "conv", "conv_in", "conv_out", "time_emb_proj", "linear_1", "linear_2",
        "proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
    )  # fmt: skip


def peft_config(lora: Lora) -> LoraConfig:
    """The adapter's settings as peft takes them."""
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), init_lora_weights="gaussian"
    )


def add_adapter(unet: UNet2DConditionModel, lora: Lora) -> UNet2DConditionModel:
    """Freeze a UNet and add a fresh trainable adapter; UserError where a target names no layer of it."""
    names = [name for name, _ in unet.named_modules()]
    absent = [t for t in lora.targets if not any(n == t or n.endswith("." + t) for n in names)]
    if len(absent) == len(lora.targets):
        raise UserError(
            f"lora.targets name no layer of the UNet: {', '.join(absent)}; expected names such as to_q, to_v, conv1"
        )
    unet.requires_grad_(False)
    unet.add_adapter(peft_config(lora), ADAPTER)
    return unet


def load_adapter(unet: UNet2DConditionModel, tensors: Mapping[str, Tensor]) -> None:
    """Write adapter tensors, named as the UNet's own parameters, into a UNet that has the adapter; UserError where they
    are of another one.
    """
    parameters = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
    if different := set(parameters) ^ set(tensors):
        raise UserError(
            f"the adapter has {len(tensors)} tensors, the UNet takes {len(parameters)}; first difference: "
            f"{min(different)}. Use the lora settings that it was trained with"
        )
    for name, tensor in tensors.items():
        taken = parameters[name].shape
        if taken != tensor.shape:
            raise UserError(
                f"the adapter's {name} has shape {tuple(tensor.shape)}, the UNet takes {tuple(taken)}. "
                "Use the lora.rank that it was trained with"
            )
        parameters[name].data.copy_(tensor)


def adapter_state(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names, which artifacts carry."""
    state: dict[str, Tensor] = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    return state
