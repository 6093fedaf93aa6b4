"""PixArt-alpha and PixArt-Sigma: a T5 text encoder, and a transformer that attends to the caption's tokens only."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.models.backbones.backbone import Backbone
from raystill.models.conditioning import Condition

MICRO = 128  # latents of this side are told resolution and aspect ratio, unless the settings say otherwise


class PixArt(Backbone):
    """PixArt-alpha (2310.00426) and PixArt-Sigma (2403.04692). Condition: `prompt`, the features of T5's last layer,
    and `mask`, 1 where there is a token; for PixArt-alpha at 1024 pixels also `resolution` and `aspect_ratio`.
    """

    __slots__ = ()
    pipelines: ClassVar[tuple[str, ...]] = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    network: ClassVar[str] = "transformer"
    model: ClassVar[str] = "PixArtTransformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    layers: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "proj", "linear",
        "linear_1", "linear_2",
    )  # fmt: skip
    landing: ClassVar[str] = "adaln_single.emb.timestep_embedder"
    loads_lora: ClassVar[bool] = False

    @property
    def tokens(self) -> int:
        """Tokens of a caption at most: 300 for Sigma, 120 for alpha."""
        return 300 if self.settings.index["_class_name"] == "PixArtSigmaPipeline" else 120

    @property
    def features(self) -> dict[str, int]:
        """Names and channels of the transformer's blocks, from the input on."""
        network = self.settings["transformer"]
        width = int(network.get("num_attention_heads", 16)) * int(network.get("attention_head_dim", 72))
        return {f"transformer_blocks.{i}": width for i in range(int(network.get("num_layers", 28)))}

    def check(self) -> None:
        """Refuse, with UserError, a transformer of other channels than the autoencoder, or of another width of text."""
        super().check()
        network, width = self.settings["transformer"], int(self.settings["text_encoder"]["d_model"])
        if network.get("caption_channels", width) != width:
            raise UserError(
                f"{self.settings.here}: its text encoder gives {width} features a token, and its transformer takes "
                f"{network['caption_channels']}"
            )

    @property
    def _micro(self) -> bool:
        network = self.settings["transformer"]
        told = network.get("use_additional_conditions")
        return network["sample_size"] == MICRO if told is None else bool(told)

    def framed(self, size: tuple[int, int], crop: tuple[int, int], side: int) -> Condition:
        """Resolution and aspect ratio of a square picture of `side` pixels, where the transformer is told them."""
        told = {"resolution": torch.tensor([[float(side)] * 2]), "aspect_ratio": torch.ones(1, 1)}
        return told if self._micro else {}

    def limit(self, texts: Any) -> tuple[Any, int]:
        """T5's tokenizer, and the pipeline's number of tokens."""
        return texts.tokenizer, self.tokens

    def encode(self, texts: Any, captions: list[str]) -> Condition:
        """The features of captions, shape (batch, tokens, width), and their mask, shape (batch, tokens)."""
        prompt, mask, _, _ = texts.encode_prompt(
            captions, do_classifier_free_guidance=False, device=texts.text_encoder.device,
            max_sequence_length=self.tokens,
        )  # fmt: skip
        return {"prompt": prompt, "mask": mask}

    def call(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Tensor:
        """The transformer's value, without the variance that it may have learned beside it."""
        more = {name: condition.get(name) for name in ("resolution", "aspect_ratio")}
        value: Tensor = network(
            x, encoder_hidden_states=condition["prompt"], encoder_attention_mask=condition["mask"],
            timestep=timestep, added_cond_kwargs=more, return_dict=False,
        )[0]  # fmt: skip
        return value[:, : x.shape[1]]
