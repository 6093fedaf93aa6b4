"""Stable Diffusion 3 and 3.5: two CLIP text encoders and T5, and a transformer of two streams on straight paths."""

from types import SimpleNamespace
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Latent
from raystill.models.backbones.backbone import Backbone
from raystill.models.conditioning import Condition

TOKENS = 256  # of T5 for a caption, as the stock pipeline has it


class StableDiffusion3(Backbone):
    """Stable Diffusion 3 and 3.5 (2403.03206). Condition: `prompt`, the features of both CLIPs' layer before the last,
    then T5's, and `pooled`, those of both CLIPs' whole caption.
    """

    __slots__ = ()
    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    network: ClassVar[str] = "transformer"
    model: ClassVar[str] = "SD3Transformer2DModel"
    encoders: ClassVar[tuple[str, ...]] = (
        "tokenizer", "tokenizer_2", "tokenizer_3", "text_encoder", "text_encoder_2", "text_encoder_3",
    )  # fmt: skip
    optional: ClassVar[tuple[str, ...]] = ("tokenizer_3", "text_encoder_3")
    layers: ClassVar[tuple[str, ...]] = tuple(
        f"attn.{name}"
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    )
    landing: ClassVar[str] = "time_text_embed.timestep_embedder"

    @property
    def features(self) -> dict[str, int]:
        """Names and channels of the transformer's blocks, from the input on: of their stream of the picture."""
        network = self.settings["transformer"]
        width = int(network.get("num_attention_heads", 18)) * int(network.get("attention_head_dim", 64))
        return {f"transformer_blocks.{i}": width for i in range(int(network.get("num_layers", 18)))}

    def check(self) -> None:
        """Refuse, with UserError, encoders whose pooled features are of another width than the transformer takes."""
        super().check()
        network = self.settings["transformer"]
        pooled = sum(int(self.settings[part]["projection_dim"]) for part in ("text_encoder", "text_encoder_2"))
        if pooled != network.get("pooled_projection_dim", pooled):
            raise UserError(
                f"{self.settings.here}: its text encoders give {pooled} features a caption, and its transformer takes "
                f"{network['pooled_projection_dim']}"
            )

    def limit(self, texts: Any) -> tuple[Any, int]:
        """T5's tokenizer, and the pipeline's number of tokens for it; CLIP's, which takes fewer, without T5."""
        return super().limit(texts) if texts.tokenizer_3 is None else (texts.tokenizer_3, TOKENS)

    def encode(self, texts: Any, captions: list[str]) -> Condition:
        """The features of captions, shapes (batch, tokens, width) and (batch, width); without T5, zeros for its own."""
        if texts.text_encoder_3 is None:  # whose width the pipeline asks the network for
            width = self.settings["transformer"]["joint_attention_dim"]
            texts.transformer = SimpleNamespace(config=SimpleNamespace(joint_attention_dim=width))
        prompt, _, pooled, _ = texts.encode_prompt(
            captions, None, None, device=texts.text_encoder.device, do_classifier_free_guidance=False,
            max_sequence_length=TOKENS,
        )  # fmt: skip
        return {"prompt": prompt, "pooled": pooled}

    def feature_map(self, output: Any, x: Latent) -> Float[Tensor, "batch channels rows columns"]:
        """The stream of the picture in the output of a block, (text, picture), as a map of the picture's places."""
        return Backbone.feature_map(self, output[1], x)

    def call(self, network: Any, x: Latent, timestep: Tensor, condition: Condition) -> Tensor:
        """The transformer's value: of straight paths, noise less data."""
        value: Tensor = network(
            hidden_states=x, timestep=timestep, encoder_hidden_states=condition["prompt"],
            pooled_projections=condition["pooled"], return_dict=False,
        )[0]  # fmt: skip
        return value
