"""Adapter directories: the weights of a distilled student with all that is needed to sample them right, written
completely or not at all.

They hold plain files only (safetensors, JSON, PNG, Markdown): files that arrive over a network are checked before they
are used, and nothing in them can be executed.
"""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Mapping
from hashlib import file_digest
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from raystill.config.errors import UserError
from raystill.models.card import CARD_NAME, AdapterCard, from_json, to_json

LORA_NAME = "pytorch_lora_weights.safetensors"  # the name diffusers looks for
PEFT_NAME, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"  # those that peft looks for
DELTA_NAME = "{}_delta.safetensors"  # W - W_base of a part, where every weight was trained
PARTS = ("unet", "transformer")  # parts of pipelines that are trained
# an adapter has exactly one of these files
WEIGHTS_NAMES = (LORA_NAME, PEFT_NAME, *(DELTA_NAME.format(part) for part in PARTS))
LANDING_NAME = "landing.safetensors"  # the layer that embeds the end time of a CTM student's jump
SCHEDULER_NAME = "scheduler/scheduler_config.json"
README_NAME = "README.md"
PICTURE_NAME = "picture.png"
_PEFT_PREFIX = "base_model.model."  # before the names of tensors in peft's own directories
_SUFFIXES = (".safetensors", ".json", ".png", ".md")
_BYSTANDERS = (".png", ".md")  # unlisted files that may lie beside the listed ones, since no loader reads them

# LoRA settings that decide what an adapter computes. Without them diffusers takes alpha = rank: a wrong picture and no
# error.
_LORA_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "target_modules", "use_rslora", "use_dora")


class ArtifactError(UserError):
    """An adapter directory is damaged, incomplete, of another format or holds something that does not belong there."""


def write(
    directory: Path,
    card: AdapterCard,
    trained: Mapping[str, Tensor],
    scheduler_config: Mapping[str, Any],
    picture: Image.Image | None,
    readme: str,
    *,
    lora_config: Mapping[str, Any] | None,
    landing: Mapping[str, Tensor] | None = None,
) -> AdapterCard:
    """Write an adapter directory in one move and return its card with the SHA-256 of every file.

    `trained` is what `peft.get_peft_model_state_dict` gives for the card's part of the pipeline, and `lora_config` what
    `LoraConfig.to_dict` gives; where `lora_config` is None, `trained` is the delta W - W_base of the part's weights.
    Where the pipeline has no `load_lora_weights`, the LoRA is written as a directory of peft's.
    `landing` is the layer that a CTM student has beside its weights. An earlier adapter at `directory` is replaced;
    anything else there, and empty or non-finite weights, raise `ArtifactError`."""
    weights = _checked(trained) if lora_config is None else _checked_lora(trained)
    if "_class_name" not in scheduler_config:
        raise ArtifactError(
            "the scheduler's config has no `_class_name`; pass `json.loads(scheduler.to_json_string())`"
        )
    _refuse_foreign_target(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
        draft = Path(scratch) / "adapter"
        (draft / SCHEDULER_NAME).parent.mkdir(parents=True)
        # One metadata entry only: safetensors writes several in an order that differs from process to process, and the
        # file's digest decides whether an adapter has been registered already.
        if lora_config is None:
            save_file(weights, draft / DELTA_NAME.format(card.part))
        elif card.loads_lora:
            metadata = {"lora_adapter_metadata": _dump_settings(lora_config, f"{card.part}.")}
            save_file({f"{card.part}.{name}": t for name, t in weights.items()}, draft / LORA_NAME, metadata=metadata)
        else:
            save_file({_PEFT_PREFIX + name: t for name, t in weights.items()}, draft / PEFT_NAME)
            (draft / PEFT_CONFIG).write_text(_dump({"peft_type": "LORA", **lora_settings(lora_config)}))
        if landing is not None:
            save_file(_checked(landing), draft / LANDING_NAME)
        # diffusers puts a leading underscore before private entries, among them the path that the config was read from
        public = {
            k: v
            for k, v in scheduler_config.items()
            if not k.startswith("_") or k in ("_class_name", "_diffusers_version")
        }
        (draft / SCHEDULER_NAME).write_text(_dump(public))
        (draft / README_NAME).write_text(readme)
        if picture is not None:
            picture.save(draft / PICTURE_NAME, format="PNG")
        written = card.with_files({name: sha256(draft / name) for name in _listing(draft)})
        (draft / CARD_NAME).write_text(_dump(to_json(written)))
        let_read(draft)
        if directory.exists():
            shutil.rmtree(directory)
        draft.rename(directory)
    return written


def let_read(directory: Path) -> None:
    """Give every file below a directory the permissions that new files get here: safetensors writes ones that only
    their owner may read.
    """
    mask = os.umask(0)
    os.umask(mask)
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(0o666 & ~mask)


def verify(directory: Path) -> AdapterCard:
    """Check an adapter directory and return its card: listed files have their digests, and no loader could read others.

    Raises `ArtifactError` saying which file is wrong and how."""
    if not (directory / CARD_NAME).is_file():
        raise ArtifactError(
            f"{directory} holds no {CARD_NAME}, so it is no raystill adapter; `raystill pull models:/NAME@champion` "
            "gets one"
        )
    card = from_json((directory / CARD_NAME).read_text(), source=str(directory / CARD_NAME))
    present = set(_listing(directory)) - {CARD_NAME}
    weights = [name for name in WEIGHTS_NAMES if name in card.files]
    needed = [SCHEDULER_NAME, *([PEFT_CONFIG] if PEFT_NAME in weights else [])]
    missing = ([] if weights else [LORA_NAME]) + [name for name in needed if name not in card.files]
    if missing:
        raise ArtifactError(
            f"{directory / CARD_NAME} lists no {', '.join(sorted(missing))}: the adapter is incomplete, export it again"
        )
    for name, expected in card.files.items():
        if name not in present:
            raise ArtifactError(f"{directory} lacks {name}, which {CARD_NAME} lists; fetch the adapter again")
        found = sha256(directory / name)
        if found != expected:
            raise ArtifactError(
                f"{directory / name} has SHA-256 {found[:16]}..., {CARD_NAME} says {expected[:16]}...: "
                "the file was changed or damaged on the way; fetch the adapter again"
            )
    strangers = [name for name in sorted(present - set(card.files)) if not name.endswith(_BYSTANDERS)]
    if strangers:
        raise ArtifactError(
            f"{directory} holds {', '.join(strangers)}, which {CARD_NAME} does not list; move it elsewhere"
        )
    _check_weights_file(directory / weights[0])
    return card


def scheduler_class(directory: Path) -> str:
    """Give the name of the scheduler's class of a verified adapter directory."""
    return str(json.loads((directory / SCHEDULER_NAME).read_text())["_class_name"])


def sha256(path: Path) -> str:
    """Give the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _listing(directory: Path) -> list[str]:
    """All files below `directory` as sorted relative names; a link or a foreign file type raises `ArtifactError`."""
    names = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"{directory / name} is a symbolic link; an adapter holds plain files only")
        if path.is_dir():
            continue
        if path.suffix not in _SUFFIXES:
            raise ArtifactError(
                f"{directory} holds {name}; an adapter holds only {', '.join(_SUFFIXES)} files (never pickles or code)"
            )
        names.append(name)
    return names


def _refuse_foreign_target(directory: Path) -> None:
    # Replacing removes what is there: only ever do that to something that is an adapter and nothing else.
    if directory.is_file() or directory.is_symlink():
        raise ArtifactError(f"{directory} is a file or a link; name a directory for the adapter")
    if directory.is_dir() and any(directory.iterdir()):
        if not (directory / CARD_NAME).is_file():
            raise ArtifactError(f"{directory} is not empty and holds no adapter; name a new directory")
        _listing(directory)


def _checked(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of weights on the CPU, since safetensors refuses tensors that share memory; `ArtifactError` where there
    are none, or where one is empty or not finite.
    """
    if not state:
        raise ArtifactError("the adapter has no weights; pass `peft.get_peft_model_state_dict(module)`")
    for name, tensor in state.items():
        if tensor.numel() == 0:
            raise ArtifactError(
                f"weight {name} is empty: under ZeRO-3 gather the parameters before saving (`with engine.trainable()`)"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise ArtifactError(f"weight {name} holds NaN or infinite values; nothing was written")
    return {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in state.items()}


def _checked_lora(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    weights = _checked(state)
    for name in state:
        if name.startswith((*(f"{part}." for part in PARTS), _PEFT_PREFIX)):
            raise ArtifactError(f"weight {name} already carries a prefix; pass the names as peft gives them")
    pairs = {side: {n.replace(side, "") for n in state if side in n} for side in ("lora_A", "lora_B")}
    if not pairs["lora_A"] or pairs["lora_A"] != pairs["lora_B"]:
        lonely = sorted(pairs["lora_A"] ^ pairs["lora_B"])[:3] or sorted(state)[:3]
        raise ArtifactError(
            f"expected lora_A and lora_B for every adapted layer, found no pair for {', '.join(lonely)}"
        )
    return weights


def lora_settings(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a LoRA that decide what it computes, of all those that `LoraConfig.to_dict` gives."""
    return {name: sorted(fields[name]) if isinstance(fields[name], set) else fields[name] for name in _LORA_FIELDS}


def _dump_settings(fields: Mapping[str, Any], prefix: str) -> str:
    return json.dumps({prefix + name: value for name, value in lora_settings(fields).items()}, sort_keys=True)


def read_weights(directory: Path, card: AdapterCard) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The weights of a verified adapter, as `write` takes them: a LoRA's tensors under peft's names and its settings,
    or a delta and None.
    """
    (name,) = (name for name in WEIGHTS_NAMES if name in card.files)
    tensors = load_file(directory / name)
    if name == PEFT_NAME:
        settings = json.loads((directory / PEFT_CONFIG).read_text())
        return {key.removeprefix(_PEFT_PREFIX): t for key, t in tensors.items()}, lora_settings(settings)
    if name != LORA_NAME:
        return tensors, None
    with safe_open(directory / name, framework="pt") as file:
        settings = json.loads(file.metadata()["lora_adapter_metadata"])
    prefix = next(iter(tensors)).partition(".")[0] + "."
    return (
        {key.removeprefix(prefix): t for key, t in tensors.items()},
        lora_settings({key.removeprefix(prefix): value for key, value in settings.items()}),
    )


def _check_weights_file(path: Path) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ArtifactError(f"{path} is not a safetensors file ({error}); fetch the adapter again") from error
    if path.name == LORA_NAME and "lora_adapter_metadata" not in metadata:
        raise ArtifactError(f"{path} has no LoRA settings in its header, so its strength is unknown; export it again")


def _dump(value: Any) -> str:
    for number in _numbers(value):
        if not math.isfinite(number):
            raise ArtifactError(f"JSON has no {number}: an evaluation figure or setting of this adapter is not finite")
    return json.dumps(value, indent=2, sort_keys=True, default=list) + "\n"


def _numbers(value: Any) -> list[float]:
    if isinstance(value, float):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in _numbers(item)]
    return []
