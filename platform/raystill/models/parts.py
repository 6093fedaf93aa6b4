"""Loading of a pipeline's parts, each by itself, with the checks that loaders leave out."""

import importlib
import inspect
import warnings
from pathlib import Path
from typing import Any

import torch
from diffusers import SchedulerMixin

from raystill.config.errors import UserError
from raystill.models.backbones.backbone import Backbone
from raystill.models.fitting import check_tokens
from raystill.models.weight_files import weight_variant


def load_network(path: Path, backbone: Backbone, dtype: torch.dtype) -> Any:
    """The network of a pipeline."""
    network = _weighted(path, backbone, backbone.network, dtype)
    # a fifth faster on CPUs
    return network.to(memory_format=torch.channels_last) if backbone.channels_last else network


def load_vae(path: Path, backbone: Backbone) -> Any:
    """The autoencoder of a pipeline, in float32: those of several families overflow in half precision."""
    return _weighted(path, backbone, "vae", torch.float32)


def load_encoder(path: Path, backbone: Backbone, scheduler: SchedulerMixin, dtype: torch.dtype) -> Any:
    """A pipeline of diffusers with its tokenizers and text encoders only; UserError where these do not fit."""
    return pipeline_of(backbone, scheduler, _encoders(path, backbone, dtype))


def _encoders(path: Path, backbone: Backbone, dtype: torch.dtype) -> dict[str, Any]:
    """The tokenizers and text encoders of a pipeline by name."""
    parts: dict[str, Any] = {}
    for name in backbone.encoders:
        if backbone.settings.part_class(name) is None:
            continue
        if name.startswith("tokenizer"):
            kind = part_class(backbone, name)
            parts[name] = kind.from_pretrained(path, subfolder=name, local_files_only=True)
        else:
            parts[name] = _weighted(path, backbone, name, dtype)
            check_tokens(backbone, name, parts[name.replace("text_encoder", "tokenizer")], parts[name])
    return parts


def load_whole(path: Path, backbone: Backbone, scheduler: SchedulerMixin) -> Any:
    """A whole pipeline of diffusers in float32, without parts that no picture here depends on."""
    parts = {backbone.network: load_network(path, backbone, torch.float32), "vae": load_vae(path, backbone)}
    return pipeline_of(backbone, scheduler, _encoders(path, backbone, torch.float32) | parts)


def pipeline_of(backbone: Backbone, scheduler: SchedulerMixin, parts: dict[str, Any]) -> Any:
    """A pipeline of diffusers that has these parts only."""
    quiet()
    index = backbone.settings.index
    kind = getattr(importlib.import_module("diffusers"), index["_class_name"])
    parameters = inspect.signature(kind.__init__).parameters
    needed = [name for name, one in parameters.items() if one.default is one.empty and name != "self"]
    given: dict[str, Any] = dict.fromkeys(needed)
    given |= {name: value for name, value in index.items() if name in parameters and not isinstance(value, list)}
    if "requires_safety_checker" in parameters:
        given["requires_safety_checker"] = False
    return kind(**{**given, "scheduler": scheduler, **parts})


def quiet() -> None:
    """Keep the loaders' progress bars and notes off the terminal."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def _weighted(path: Path, backbone: Backbone, name: str, dtype: torch.dtype) -> Any:
    """One network of a pipeline, frozen and in evaluation mode; UserError where weights are missing, of another shape
    or not finite, which loaders pass over. Pickled weights are never read.
    """
    here = backbone.settings.here
    quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            network, told = part_class(backbone, name).from_pretrained(
                path, subfolder=name, dtype=dtype, local_files_only=True, use_safetensors=True,
                variant=weight_variant(path, [name]), output_loading_info=True,
            )  # fmt: skip
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{here} cannot be read: {name}: {error}") from error
    if missing := sorted(told["missing_keys"]):
        raise UserError(
            f"{here}: the weights of {name} lack {len(missing)} tensors ({', '.join(missing[:3])}), "
            "which would be random numbers; fetch or write the pipeline anew"
        )
    bad = [key for key, tensor in network.state_dict().items() if not torch.isfinite(tensor).all()]
    if bad:
        raise UserError(
            f"{here}: {len(bad)} tensors of {name} hold numbers that are not finite "
            f"({', '.join(bad[:3])}); fetch or write the pipeline anew"
        )
    return network.eval().requires_grad_(False)


def part_class(backbone: Backbone, name: str) -> Any:
    """The class of a pipeline's part, one of diffusers or transformers; UserError for any other."""
    library, kind = backbone.settings.index[name]
    found = getattr(importlib.import_module(library), kind, None) if library in ("diffusers", "transformers") else None
    if found is None:
        raise UserError(
            f"{backbone.settings.here}: {name} is a {library}.{kind}, of neither diffusers nor transformers"
        )
    return found
