"""The protocol of a family of pipelines: how its captions are encoded, its network asked, and its latents turned into
pictures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.models.backbones.settings import Settings
from raystill.models.conditioning import Condition, expanded, moved
from raystill.models.denoiser import Network

Pictures = Float[Tensor, "batch colours rows columns"]  # in [-1, 1]


@dataclass(frozen=True, slots=True)
class Backbone(ABC):
    """A family of pipelines, with the settings of one of them; latents are (batch, channels, rows, columns)."""

    settings: Settings
    _fixed: dict[torch.device, Condition] = field(default_factory=dict, init=False, compare=False, repr=False)

    pipelines: ClassVar[tuple[str, ...]]  # classes of diffusers, as model_index.json names them
    network: ClassVar[str]  # the part that students are trained from
    model: ClassVar[str]  # class of that part in diffusers
    encoders: ClassVar[tuple[str, ...]]  # the parts that captions are encoded with, tokenizers first
    optional: ClassVar[tuple[str, ...]] = ()  # those of them that a pipeline may lack
    layers: ClassVar[tuple[str, ...]]  # names of the layers that papers and example scripts give a LoRA
    landing: ClassVar[str]  # the network's TimestepEmbedding, which has room for a condition of the time
    loads_lora: ClassVar[bool] = (
        True  # whether the pipeline has `load_lora_weights`; the card says it by `WITHOUT_LORA`
    )
    told_frames: ClassVar[bool] = False  # whether the network is told the size that a picture was cut from
    channels_last: ClassVar[bool] = False  # whether the network is faster in that memory format

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a latent at the pipeline's own picture size."""
        network = self.settings[self.network]
        size = int(network["sample_size"])
        return (int(network["in_channels"]), size, size)

    @property
    def factor(self) -> int:
        """Pixels per latent position, along a side."""
        return int(2 ** (len(self.settings["vae"]["block_out_channels"]) - 1))

    @property
    def picture_shape(self) -> tuple[int, int]:
        """Side in pixels and channels of the pipeline's own pictures."""
        return self.latent_shape[1] * self.factor, int(self.settings["vae"].get("in_channels", 3))

    @property
    @abstractmethod
    def features(self) -> dict[str, int]:
        """Names and channels of the network's blocks, from the input on."""

    @property
    def fixed(self) -> Condition:
        """What every sample is told alike, one row, unless its own condition says otherwise: it is not stored."""
        side = self.picture_shape[0]
        return self.framed((side, side), (0, 0), side)

    def framed(self, size: tuple[int, int], crop: tuple[int, int], side: int) -> Condition:
        """What the network is told of a square picture of `side` pixels that was cut at `crop` (top, left) from one of
        `size` (rows, columns), one row; nothing, for most families.
        """
        del size, crop, side
        return {}

    def check(self) -> None:
        """Refuse, with UserError, a pipeline whose parts do not fit each other or whose network takes other inputs, by
        its settings alone.
        """
        latent, channels = self._channels, int(self.settings[self.network].get("in_channels", 4))
        if latent != channels:
            raise UserError(
                f"{self.settings.here} has a {self.noun} of {channels} input channels, and an autoencoder of "
                f"{latent}: networks for inpainting, editing or upscaling take more than a latent, and are not "
                "distilled here"
            )

    @property
    def noun(self) -> str:
        """What the network is called in messages."""
        return "UNet" if self.network == "unet" else self.network

    @property
    def _channels(self) -> int:
        return int(self.settings["vae"].get("latent_channels", 4))

    def limit(self, texts: Any) -> tuple[Any, int]:
        """The tokenizer that takes the longest captions, and its number of tokens."""
        return texts.tokenizer, int(texts.tokenizer.model_max_length)

    def cut(self, texts: Any, captions: list[str]) -> int:
        """How many of the captions are longer than the text encoders take, which leave out their ends."""
        tokenizer, limit = self.limit(texts)
        return sum(len(ids) > limit for ids in tokenizer(captions, truncation=False, verbose=False).input_ids)

    @abstractmethod
    def encode(self, texts: Any, captions: list[str]) -> Condition:
        """The condition of captions; `texts` is the pipeline with its encoders only."""

    def empty(self, texts: Any) -> Condition:
        """The condition of guidance's other branch, one row: of the empty caption."""
        return self.encode(texts, [""])

    @abstractmethod
    def call(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Tensor:
        """The network's value at latents and timesteps of the teacher's scheduler, shape (batch,)."""

    def ask(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Latent:
        """The network's value in the precision of x; `network` may be an engine's wrapper."""
        if x.device not in self._fixed:  # once, not in every step
            self._fixed[x.device] = moved(self.fixed, x.device)
        told = {**expanded(self._fixed[x.device], len(x)), **condition}
        told = {name: tensor.to(x.dtype) if tensor.is_floating_point() else tensor for name, tensor in told.items()}
        return self.call(network, x, timestep, told).to(x.dtype)  # bfloat16 under autocast

    def landing_at(self, network: Any, landing: Float[Tensor, "batch width"]) -> Callable[..., Any]:
        """A network that is given the embedded times of its landings (`models.ctm`) with every call; `network` may be
        an engine's wrapper.
        """
        own: Any = getattr(network, "module", network)

        def call(*arguments: Any, **named: Any) -> Any:
            embedding = own.get_submodule(self.landing)
            hook = embedding.register_forward_pre_hook(lambda _module, inputs: (inputs[0], landing))
            try:
                return network(*arguments, **named)
            finally:
                hook.remove()

        return call

    def feature_map(self, output: Any, x: Latent) -> Float[Tensor, "batch channels rows columns"]:
        """The output of one of the network's blocks, in the forward of latents x, as a map of the picture's places."""
        tokens: Tensor = output[0] if isinstance(output, tuple) else output
        patch = int(self.settings[self.network].get("patch_size", 2))
        found: Tensor = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))
        return found

    def bound(self, network: Any) -> Network:
        """A network as a function of latents, timesteps and condition."""
        return partial(self.ask, network)

    @torch.no_grad()
    def latents(self, vae: Any, pictures: Pictures) -> Latent:
        """Mean latents of pictures, of about unit variance."""
        mean: Tensor = vae.encode(pictures).latent_dist.mean
        return (mean - self._shift(mean)) * self._scale(mean)

    @torch.no_grad()
    def pictures(self, vae: Any, latents: Latent) -> Pictures:
        """Pictures of latents, about in [-1, 1]."""
        decoded: Tensor = vae.decode(latents / self._scale(latents) + self._shift(latents)).sample
        return decoded

    def _scale(self, like: Tensor) -> float | Tensor:
        """What centred latents are multiplied by."""
        del like
        return float(self.settings["vae"].get("scaling_factor", 0.18215))

    def _shift(self, like: Tensor) -> float | Tensor:
        """What latents are centred at."""
        del like
        return float(self.settings["vae"].get("shift_factor") or 0.0)
