"""The code inside a registered model, which samples the model's adapter with its own steps, guidance and scheduler.

MLflow copies this file into the model and runs it where the model is loaded, so it stands alone: it needs mlflow,
diffusers, peft, safetensors and torch, and nothing of raystill but what travels in the same model. A caller may ask for
another of the adapter's trained step counts.
"""

import hashlib
import importlib
import inspect
import io
import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext  # type: ignore[attr-defined]
from peft import PeftModel
from safetensors.torch import load_file


class FewStepModel(PythonModel):
    """An MLflow model that turns {"prompt": [...]} into PNG pictures, as bytes; its parameters are steps and seed."""

    def load_context(self, context: PythonModelContext) -> None:
        """Check the adapter's files and load base, adapter and scheduler; ValueError where they do not fit together."""
        directory = Path(context.artifacts["adapter"])
        self._card: dict[str, Any] = json.loads((directory / "adapter.json").read_text())
        for name, digest in self._card["files"].items():
            if hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest:
                raise ValueError(f"{name} is not the file that adapter.json describes: fetch the model again")
        config = context.model_config or {}
        scheduler = _scheduler(directory, config.get("scheduler"), self._card["start"])
        base = self._card["base"]
        # A base that has moved is named at loading: model_config={"base": "/new/place"}, which has no revision.
        moved = config.get("base") or base["id"]
        if moved.startswith("shipped://"):  # it comes with raystill, which is not in the model
            moved = _shipped(moved)
        revision = base["revision"] if moved == base["id"] and not Path(moved).is_dir() else None
        pipeline = diffusers.DiffusionPipeline.from_pretrained(moved, revision=revision, dtype=torch.float32)
        pipeline.scheduler = scheduler
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        network = getattr(pipeline, part)
        if f"{part}_delta.safetensors" in self._card["files"]:
            for name, gained in load_file(directory / f"{part}_delta.safetensors").items():
                network.get_parameter(name).data += gained
        elif "adapter_model.safetensors" in self._card["files"]:  # the pipeline has no load_lora_weights
            setattr(pipeline, part, PeftModel.from_pretrained(network, directory, use_safetensors=True))
        else:
            pipeline.load_lora_weights(directory, weight_name="pytorch_lora_weights.safetensors", use_safetensors=True)
        if "landing.safetensors" in self._card["files"]:
            scheduler.attach(network, load_file(directory / "landing.safetensors"))
        pipeline.set_progress_bar_config(disable=True)
        # Some pipelines round the size of pictures to one of a list, which is not the size that was trained, and change
        # captions where libraries for that are installed.
        rounds = "use_resolution_binning" in inspect.signature(pipeline.__call__).parameters
        self._exactly = {"use_resolution_binning": False, "clean_caption": False} if rounds else {}
        self._pipeline = pipeline.to(config.get("device") or ("cuda" if torch.cuda.is_available() else "cpu"))

    def predict(
        self, context: PythonModelContext, model_input: Any, params: dict[str, Any] | None = None
    ) -> list[bytes]:
        """Draw one picture for each prompt; ValueError for a number of steps that the adapter was not trained for."""
        prompts = _prompts(model_input)
        asked = params or {}
        steps, seed = int(asked.get("steps") or self._card["default_steps"]), int(asked.get("seed", 0))
        if str(steps) not in self._card["timesteps"]:
            raise ValueError(f"this adapter draws in {self._card['steps']} steps, {steps} were asked for")
        # One generator for each prompt: a picture does not depend on what is drawn beside it.
        generators = [torch.Generator("cpu").manual_seed(seed + i) for i in range(len(prompts))]
        drawn = self._pipeline(
            prompt=prompts, generator=generators, guidance_scale=self._card["guidance_scale"], **self._schedule(steps),
            **self._exactly,
        )  # fmt: skip
        return [_png(picture) for picture in drawn.images]

    def _schedule(self, steps: int) -> dict[str, Any]:
        self._pipeline.scheduler.set_timesteps(steps)
        trained = self._card["timesteps"][str(steps)]
        if self._pipeline.scheduler.timesteps.tolist() == trained:
            return {"num_inference_steps": steps}
        return {"timesteps": trained}  # diffusers refuses this, with an error, for a scheduler that cannot follow it


def _scheduler(directory: Path, module: str | None, start: dict[str, Any]) -> Any:
    """The adapter's scheduler: one of diffusers, or the one in the module that travels with the model."""
    name = json.loads((directory / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    kind: Any = getattr(importlib.import_module(module) if module else diffusers, name, None)
    known = isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)
    if not known:
        place = module or f"diffusers {diffusers.__version__}"
        raise ValueError(f"the adapter's scheduler is {name!r}, which {place} does not have")
    if module is None and start != {"law": "normal"}:
        raise ValueError(f"{name} starts from normal latents, the adapter from {start}")
    return kind.from_pretrained(directory, subfolder="scheduler")


def _shipped(address: str) -> str:
    """The directory of a base that comes with raystill; ValueError where raystill is not installed."""
    try:
        return str(importlib.import_module("raystill.config.shipped").located(address))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the base {address} comes with raystill, which is not installed here: install it, or give the directory "
            'of a copy: model_config={"base": DIRECTORY}'
        ) from error


def _prompts(model_input: Any) -> list[str]:
    column = list(model_input["prompt"])  # a data frame or a dict
    prompts = [p for entry in column for p in (entry if isinstance(entry, list) else [entry])]
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise ValueError(f'expected {{"prompt": ["a red apple", ...]}}, found {model_input!r}')
    return prompts


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


set_model(FewStepModel())
