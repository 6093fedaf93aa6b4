"""Whether the parts of a pipeline fit each other, and whether it looks distilled already."""

import re
from pathlib import Path
from typing import Any

from raystill.config.errors import UserError
from raystill.models.backbones.backbone import Backbone
from raystill.models.backbones.settings import Settings

FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler")
# Words by which few-step models call themselves in a directory's name, or in the header of a README.
FEW_STEP_NAMES = re.compile(r"\b(turbo|lightning|hyper-?sd\w*|lcm|dmd2?|few-step)\b", re.IGNORECASE)
VOCABULARIES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")  # files of which one is enough


def check_vocabularies(backbone: Backbone) -> None:
    """Refuse, with UserError, a tokenizer without a vocabulary, which would turn every caption into the same tokens
    without a word.
    """
    settings = backbone.settings
    for name in backbone.encoders:
        if not name.startswith("tokenizer") or settings.part_class(name) is None:
            continue
        if not any((settings.path / name / file).is_file() for file in VOCABULARIES):
            raise UserError(
                f"{settings.here}: its {name} has no vocabulary; expected one of {', '.join(VOCABULARIES)} in {name}/"
            )


def sign_of_distillation(path: Path) -> str:
    """Why a pipeline looks as if it had been distilled already, in words; empty where it does not."""
    settings = Settings(path)
    scheduler = settings.part_class("scheduler")
    if scheduler in FEW_STEP_SCHEDULERS:
        return f"its scheduler is {scheduler}"
    if settings.part_class("unet") and settings["unet"].get("time_cond_proj_dim") is not None:
        return "its UNet is told a guidance scale"
    readme = path / "README.md"
    head = readme.read_text(errors="replace")[:4000] if readme.is_file() else ""
    named = FEW_STEP_NAMES.search(f"{path.resolve().name} {head.partition('# ')[0]}")
    return f"it is called {named[0]}" if named else ""


def check_tokens(backbone: Backbone, name: str, tokenizer: Any, text_encoder: Any) -> None:
    """Refuse, with UserError, a tokenizer that gives more tokens, or longer captions, than its text encoder takes."""
    config = text_encoder.config
    longest = getattr(config, "max_position_embeddings", None)  # T5 takes captions of any length
    pairs = [("tokens", len(tokenizer), config.vocab_size)]
    pairs += [] if longest is None else [("tokens a caption", tokenizer.model_max_length, longest)]
    for what, given, taken in pairs:
        if given > taken:
            raise UserError(f"{backbone.settings.here}: its tokenizer has {given} {what}, and its {name} {taken}")
