"""Whether the parts of a pipeline fit each other and are of the kind that students are distilled from, by their
settings alone.
"""

import json
import re
from pathlib import Path
from typing import Any

from raystill.config.errors import UserError

# Settings of UNets that ask for more than a time and text features; diffusers' default is None for each.
MORE_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
# Words by which few-step models call themselves in a directory's name, or in the header of a README.
FEW_STEP_NAMES = re.compile(r"\b(turbo|lightning|hyper-?sd\w*|lcm|dmd2?|few-step)\b", re.IGNORECASE)
VOCABULARIES = ("tokenizer.json", "vocab.json")  # files of a CLIP tokenizer, of which one is enough


def check_fit(path: Path) -> None:
    """Refuse, with UserError, a Stable Diffusion pipeline whose UNet has other inputs, whose parts do not fit each
    other, or whose tokenizer has no vocabulary, which would turn every caption into the same tokens without a word.
    """
    unet, vae, text = (_settings(path, part) for part in ("unet", "vae", "text_encoder"))
    here = f"teacher {str(path)!r}"
    if more := {name: unet[name] for name in MORE_INPUTS if unet.get(name) is not None}:
        told = ", ".join(f"{name}={value}" for name, value in more.items())
        raise UserError(
            f"{here} has a UNet that is told more than a time and a caption ({told}), as SDXL's and class-conditional "
            "ones are; expected one of the Stable Diffusion 1.x and 2.x layout"
        )
    latent, channels = int(vae.get("latent_channels", 4)), (unet.get("in_channels", 4), unet.get("out_channels", 4))
    if channels != (latent, latent):
        raise UserError(
            f"{here} has a UNet of {channels[0]} input and {channels[1]} output channels, and an autoencoder of "
            f"{latent}: UNets for inpainting, editing or upscaling take more than a latent, and are not distilled here"
        )
    width, attended = text.get("hidden_size", 512), unet.get("cross_attention_dim", 1280)
    if set(attended if isinstance(attended, list) else [attended]) != {width}:
        raise UserError(f"{here}: its text encoder gives {width} features a token, and its UNet attends to {attended}")
    if not any((path / "tokenizer" / name).is_file() for name in VOCABULARIES):
        raise UserError(f"{here}: its tokenizer has no vocabulary; expected {' or '.join(VOCABULARIES)} in tokenizer/")


def sign_of_distillation(path: Path) -> str:
    """Why a pipeline looks as if it had been distilled already, in words; empty where it does not."""
    scheduler = json.loads((path / "model_index.json").read_text()).get("scheduler", ["", ""])[1]
    if scheduler in FEW_STEP_SCHEDULERS:
        return f"its scheduler is {scheduler}"
    if _settings(path, "unet").get("time_cond_proj_dim") is not None:
        return "its UNet is told a guidance scale"
    readme = path / "README.md"
    head = readme.read_text(errors="replace")[:4000] if readme.is_file() else ""
    named = FEW_STEP_NAMES.search(f"{path.resolve().name} {head.partition('# ')[0]}")
    return f"it is called {named[0]}" if named else ""


def check_tokens(path: Path, tokenizer: Any, text_encoder: Any) -> None:
    """Refuse, with UserError, a tokenizer that gives more tokens, or longer captions, than a text encoder takes."""
    for what, given, taken in (
        ("tokens", len(tokenizer), text_encoder.config.vocab_size),
        ("tokens a caption", tokenizer.model_max_length, text_encoder.config.max_position_embeddings),
    ):
        if given > taken:
            raise UserError(f"teacher {str(path)!r}: its tokenizer has {given} {what}, and its text encoder {taken}")


def _settings(path: Path, part: str) -> dict[str, Any]:
    """The settings of one part; UserError where they cannot be read."""
    file = path / part / "config.json"
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"teacher {str(path)!r}: {file.relative_to(path)} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"teacher {str(path)!r}: {file.relative_to(path)} holds a {type(found).__name__}, no settings")
    return found
