"""Stable Diffusion 1.x and 2.x: one CLIP text encoder and a UNet that attends to its features."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.models.backbones.backbone import Backbone
from raystill.models.conditioning import Condition

# Settings of UNets that ask for more than a time and text features; diffusers' default is None for each.
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERY_LAYER = (  # as in the scripts that distil LCMs
    *ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


class StableDiffusion(Backbone):
    """Stable Diffusion 1.x and 2.x. Condition: `prompt`, the features of the text encoder's last layer."""

    __slots__ = ()
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    network: ClassVar[str] = "unet"
    model: ClassVar[str] = "UNet2DConditionModel"
    encoders: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    layers: ClassVar[tuple[str, ...]] = EVERY_LAYER
    landing: ClassVar[str] = "time_embedding"
    channels_last: ClassVar[bool] = True
    more_inputs: ClassVar[tuple[str, ...]] = ()  # those of MORE_INPUTS that `call` gives

    @property
    def features(self) -> dict[str, int]:
        """Names and channels of the UNet's blocks, from the input on."""
        unet = self.settings["unet"]
        widths = list(unet["block_out_channels"])
        down = {f"down_blocks.{i}": width for i, width in enumerate(widths)}
        up = {f"up_blocks.{i}": width for i, width in enumerate(reversed(widths))}
        middle = {"mid_block": widths[-1]} if unet.get("mid_block_type", "UNetMidBlock2DCrossAttn") is not None else {}
        return {**down, **middle, **up}

    def check(self) -> None:
        """Refuse, with UserError, a UNet that is told more than this family's are, and text features of another width
        than it attends to.
        """
        unet, here = self.settings["unet"], self.settings.here
        more = {name: unet[name] for name in MORE_INPUTS if unet.get(name) is not None and name not in self.more_inputs}
        if more:
            listed = ", ".join(f"{name}={value}" for name, value in more.items())
            raise UserError(
                f"{here} has a UNet that is told more than a time and a caption ({listed}), as class-conditional ones "
                f"are; expected one such as {self.pipelines[0]} has"
            )
        super().check()
        if int(unet.get("out_channels", 4)) != self._channels:
            raise UserError(
                f"{here} has a UNet of {unet['out_channels']} output channels, and an autoencoder of {self._channels}"
            )
        attended, width = unet.get("cross_attention_dim", 1280), self._text_width
        if set(attended if isinstance(attended, list) else [attended]) != {width}:
            raise UserError(
                f"{here}: its text encoders give {width} features a token, and its UNet attends to {attended}"
            )

    @property
    def _text_width(self) -> int:
        return int(self.settings["text_encoder"].get("hidden_size", 512))

    def encode(self, texts: Any, captions: list[str]) -> Condition:
        """The features of captions, shape (batch, tokens, width)."""
        return {"prompt": texts.encode_prompt(captions, texts.text_encoder.device, 1, False)[0]}

    def landing_at(self, network: Any, landing: Float[Tensor, "batch width"]) -> Callable[..., Any]:
        """A UNet that is given the embedded times of its landings with every call, as diffusers gives a condition of
        the time.
        """
        return partial(network, timestep_cond=landing)

    def feature_map(self, output: Any, x: Latent) -> Float[Tensor, "batch channels rows columns"]:
        """The output of one of the UNet's blocks, which is such a map."""
        del x
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def call(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Tensor:
        """The UNet's value."""
        value: Tensor = network(x, timestep, condition["prompt"], return_dict=False)[0]
        return value
