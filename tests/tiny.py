"""Tiny pipelines of random weights of every family, of diffusers' and transformers' own classes, made without a
network: for pictures of 32 pixels.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import pre_tokenizers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

WORDS = ("a", "red", "heart", "blue", "cat", "on", "the", "grass")
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
LENGTH, WIDTH = 16, 32  # tokens of CLIP's captions, and features per token
BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def clip_tokenizer() -> CLIPTokenizer:
    """One token for each byte."""
    tokens = [*BYTES, *(letter + "</w>" for letter in BYTES), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[], model_max_length=LENGTH)


def t5_tokenizer() -> T5Tokenizer:
    """One token for each letter, and for each of a few words."""
    letters = [(chr(code), -4.0) for code in range(33, 127)]
    words = [("▁" + word, -1.0) for word in WORDS]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *letters, *words], extra_ids=0)


def clip(kind: type[Any], act: str = "quick_gelu") -> Any:
    """A CLIP text encoder for `clip_tokenizer`."""
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act=act,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return kind(config)


def t5(width: int) -> T5EncoderModel:
    """A T5 text encoder for `t5_tokenizer`."""
    return T5EncoderModel(T5Config(
        vocab_size=len(t5_tokenizer()), d_model=width, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu",
    ))  # fmt: skip


def autoencoder(latent: int = 4, **settings: Any) -> AutoencoderKL:
    """One that halves the side of pictures."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 16), layers_per_block=1,
        latent_channels=latent, norm_num_groups=4, sample_size=32, **settings,
    )  # fmt: skip


def unet(width: int, **settings: Any) -> UNet2DConditionModel:
    """One that attends to features of a width."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(16, 32), layers_per_block=1,
        cross_attention_dim=width, norm_num_groups=8, **{"attention_head_dim": (2, 4), **settings},
    )  # fmt: skip


def stable_diffusion(prediction: str = "epsilon", **scheduler: Any) -> StableDiffusionPipeline:
    """Stable Diffusion 1.5's layout."""
    return StableDiffusionPipeline(
        vae=autoencoder(scaling_factor=0.18215), text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(),
        unet=unet(WIDTH, attention_head_dim=4), safety_checker=None, feature_extractor=None,
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, steps_offset=1, prediction_type=prediction, **scheduler),
        requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_2() -> StableDiffusionPipeline:
    """Stable Diffusion 2.1's, which predicts v."""
    made = stable_diffusion("v_prediction")
    made.register_modules(unet=unet(WIDTH, use_linear_projection=True), text_encoder=clip(CLIPTextModel, "gelu"))
    return made


def zero_terminal_snr() -> StableDiffusionPipeline:
    """One whose last step is pure noise."""
    return stable_diffusion("v_prediction", rescale_betas_zero_snr=True)


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    """Stable Diffusion XL's layout."""
    network = unet(
        2 * WIDTH, transformer_layers_per_block=(1, 2), use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025, force_upcast=True), text_encoder=clip(CLIPTextModel),
        text_encoder_2=clip(CLIPTextModelWithProjection, "gelu"), tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(), unet=network,
        scheduler=EulerDiscreteScheduler(**BETAS, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip


def pixart(kind: type[Any] = PixArtSigmaPipeline, *, micro: bool = False) -> Any:
    """PixArt's layout; with `micro`, it is told resolution and aspect ratio, as PixArt-alpha is at 1024 pixels."""
    heads = 6 if micro else 4  # the width of three embeddings, of rows, columns and ratio
    network = PixArtTransformer2DModel(
        sample_size=128 if micro else 16, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=heads,
        caption_channels=WIDTH, in_channels=4, cross_attention_dim=8 * heads, out_channels=8, attention_bias=True,
        norm_type="ada_norm_single", norm_elementwise_affine=False, norm_eps=1e-6,
    )  # fmt: skip
    return kind(
        tokenizer=t5_tokenizer(), text_encoder=t5(WIDTH), vae=autoencoder(scaling_factor=0.13025), transformer=network,
        scheduler=DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear"),
    )  # fmt: skip


def pixart_alpha() -> PixArtAlphaPipeline:
    """PixArt-alpha's layout at small sizes."""
    return pixart(PixArtAlphaPipeline)


def pixart_alpha_1024() -> PixArtAlphaPipeline:
    """PixArt-alpha's layout at 1024 pixels, of latents of that size."""
    return pixart(PixArtAlphaPipeline, micro=True)


def stable_diffusion_3(*, t5_too: bool = True) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's layout, with 3.5's second attention in its first block; T5 may be left out."""
    network = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=16, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=3 * WIDTH, pooled_projection_dim=2 * WIDTH, out_channels=16,
        pos_embed_max_size=16, qk_norm="rms_norm", dual_attention_layers=(0,),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(
            16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False
        ),
        text_encoder=clip(CLIPTextModelWithProjection), tokenizer=clip_tokenizer(),
        text_encoder_2=clip(CLIPTextModelWithProjection, "gelu"), tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5(3 * WIDTH) if t5_too else None, tokenizer_3=t5_tokenizer() if t5_too else None,
    )  # fmt: skip


def stable_diffusion_3_without_t5() -> StableDiffusion3Pipeline:
    """Stable Diffusion 3 as people with little memory keep it."""
    return stable_diffusion_3(t5_too=False)


TINY: dict[str, Callable[[], Any]] = {
    "sd15": stable_diffusion, "sd21": stable_diffusion_2, "sd-zero-snr": zero_terminal_snr,
    "sdxl": stable_diffusion_xl, "pixart-alpha": pixart_alpha, "pixart-alpha-1024": pixart_alpha_1024,
    "pixart-sigma": pixart, "sd3": stable_diffusion_3, "sd3-without-t5": stable_diffusion_3_without_t5,
}  # fmt: skip


def aura_flow() -> AuraFlowPipeline:
    """AuraFlow's layout, which raystill does not have: the example of how to add one."""
    tokenizer = t5_tokenizer()
    network = AuraFlowTransformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=8,
        num_attention_heads=4, caption_projection_dim=32, joint_attention_dim=WIDTH, out_channels=4,
        pos_embed_max_size=256,
    )  # fmt: skip
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    )
    return AuraFlowPipeline(
        tokenizer=tokenizer, text_encoder=encoder, vae=autoencoder(scaling_factor=0.13025), transformer=network,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.73),
    )  # fmt: skip


def tiny(name: str) -> Any:
    """The pipeline of a name in `TINY`."""
    return ready(TINY[name])


def ready(make: Callable[[], Any]) -> Any:
    """A pipeline of random weights, none of which are zeros, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = make()
        for network in networks(pipeline):
            network.eval().requires_grad_(False)
            for parameter in network.parameters():  # fresh ones end in zeros, behind which everything is equal
                if parameter.ndim > 1 and not parameter.any():
                    nn.init.normal_(parameter, std=0.05)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def networks(pipeline: Any) -> Iterator[nn.Module]:
    """The networks of a pipeline."""
    return (part for part in pipeline.components.values() if isinstance(part, nn.Module))
