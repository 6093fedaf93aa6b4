"""The card of an adapter (adapter.json): how its weights were made, and how they are to be sampled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import PurePosixPath
from typing import Any

from raystill.config.digest import canonical, digest
from raystill.config.errors import UserError
from raystill.config.shipped import SCHEME, located

CARD_NAME = "adapter.json"
FORMAT = 3  # of adapter.json; format 2 had no fingerprint, format 1 repeated the scheduler's settings
UNETS, WITHOUT_LORA = ("StableDiffusionPipeline", "StableDiffusionXLPipeline"), "PixArt"  # beginnings of classes
RAYSTILL_SCHEDULERS = {
    "RayFlowScheduler": "raystill.models.scheduler",
    "PeRFlowScheduler": "raystill.models.perflow",
    "CTMScheduler": "raystill.models.ctm",
}  # class -> module; all other schedulers are diffusers' own


# Fields that a card lacks where they say nothing: only pipelines of flow-matching models take sigmas, and cards older
# than other families are of Stable Diffusion's.
OPTIONAL: dict[str, Any] = {"sigmas": {}, "pipeline": "StableDiffusionPipeline"}


class CardError(UserError):
    """A card contradicts itself, lacks a field or is of a format that this version does not read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The base model that an adapter belongs to."""

    id: str  # a Hub name, a directory, or shipped://NAME
    revision: str | None = None  # digest of a directory's files (`models.revision`), or a commit on the Hub


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCard:
    """How an adapter was made and how it is to be sampled; contradictions raise `CardError`."""

    base: Base
    method: str
    steps: tuple[int, ...]  # step counts that the student was trained for
    default_steps: int  # step count that is drawn unless another is asked for; one of `steps`
    timesteps: Mapping[str, tuple[int | float, ...]]  # step count -> the teacher's timesteps, noisy end first
    sigmas: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # step count -> `sigmas` for a flow pipeline
    guidance_scale: float  # diffusers' convention: 1 is no guidance
    recipe: Mapping[str, Any]  # settings of the whole run as plain JSON values
    recipe_digest: str  # checksum of the whole recipe (`config.digest`)
    fingerprint: str | None = None  # of the recipe (`config.fingerprint`); None in adapters older than fingerprints
    commit: str  # commit of raystill's code at the export
    pipeline: str = "StableDiffusionPipeline"  # class of the base in diffusers
    start: Mapping[str, Any] = field(default_factory=lambda: {"law": "normal"})  # law of the start (`flow.starts`)
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # {} or {"digest", "frechet": {"4": ...}, ...}
    files: Mapping[str, str] = field(default_factory=dict)  # name -> SHA-256, filled in by `artifact.write`

    def __post_init__(self) -> None:
        if self.default_steps not in self.steps:
            raise CardError(f"default_steps is {self.default_steps}, which is not among steps {list(self.steps)}")
        if set(self.timesteps) != {str(n) for n in self.steps}:
            raise CardError(
                f"timesteps are given for {sorted(self.timesteps)} steps, expected {[str(n) for n in self.steps]}"
            )
        for count, times in self.timesteps.items():
            if len(times) != int(count):
                raise CardError(f"timesteps[{count!r}] has {len(times)} entries, expected {count}")
        for count, sigmas in self.sigmas.items():
            if len(sigmas) != len(self.timesteps.get(count, ())):
                raise CardError(f"sigmas[{count!r}] has {len(sigmas)} entries, expected as many as its timesteps")
        if digest(self.recipe) != self.recipe_digest:
            raise CardError(f"recipe_digest is {self.recipe_digest}, the recipe's own digest is {digest(self.recipe)}")
        if "law" not in self.start:
            raise CardError("start has no `law`; write {'law': 'normal'} for standard normal latents")
        if self.evaluation and not (
            "digest" in self.evaluation and isinstance(self.evaluation.get("frechet"), Mapping)
        ):
            raise CardError("evaluation needs `digest` and `frechet` (step count -> distance), or must be empty")

    @property
    def part(self) -> str:
        """The part of the pipeline that was trained."""
        return "unet" if self.pipeline.startswith(UNETS) else "transformer"

    @property
    def loads_lora(self) -> bool:
        """Whether the pipeline has `load_lora_weights`; where not, its LoRA is a directory of peft's."""
        return not self.pipeline.startswith(WITHOUT_LORA)

    @property
    def evaluation_digest(self) -> str | None:
        """The fingerprint of the evaluation that measured the figures, None where nothing was measured."""
        return str(self.evaluation["digest"]) if self.evaluation else None

    @property
    def recipe_name(self) -> str:
        """The short name of the recipe in texts: its fingerprint, or its checksum where there is none."""
        return self.fingerprint or self.recipe_digest

    def frechet(self, steps: int) -> float | None:
        """The Frechet distance at `steps` steps (smaller is better), None where it was not measured."""
        value = self.evaluation.get("frechet", {}).get(str(steps))
        return None if value is None else float(value)

    def with_files(self, files: Mapping[str, str]) -> "AdapterCard":
        """The same card listing these files (name -> SHA-256)."""
        return replace(self, files=dict(sorted(files.items())))


def to_json(card: AdapterCard) -> dict[str, Any]:
    """Give the JSON form of a card, which `from_json` reads back."""
    written = {f.name: canonical(getattr(card, f.name)) for f in fields(card)}
    written = {name: value for name, value in written.items() if name not in OPTIONAL or value != OPTIONAL[name]}
    written["base"] = {"id": card.base.id, "revision": card.base.revision}
    return {"format": FORMAT, **written}


def from_json(text: str, source: str) -> AdapterCard:
    """Read a card from JSON text of format 1 to 3; `source` names the text in the message of a `CardError`."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise CardError(f"{source} is not JSON ({error}); fetch the adapter again") from error
    if isinstance(found, dict) and found.get("format") == 1:
        found = {name: value for name, value in found.items() if name != "path"} | {"format": 2}
        found["start"] = {name: value for name, value in found["start"].items() if name not in ("jump", "eta")}
    if isinstance(found, dict) and found.get("format") == 2:
        found = {**found, "fingerprint": None, "format": FORMAT}
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise CardError(
            f"{source} has format {version!r}, this version of raystill reads {FORMAT}: "
            "install the raystill that wrote it, or export again"
        )
    del found["format"]
    found = {**OPTIONAL, **found}
    names = {f.name for f in fields(AdapterCard)}
    if set(found) != names:
        raise CardError(f"{source}: missing {sorted(names - set(found))}, unknown {sorted(set(found) - names)}")
    for name, digest_ in _mapping(found, "files", source).items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not isinstance(digest_, str):
            raise CardError(f"{source} lists the file {name!r}, which does not lie inside the adapter's directory")
    base = _mapping(found, "base", source)
    if set(base) != {"id", "revision"}:
        raise CardError(f"{source}: base has {sorted(base)}, expected id and revision")
    found["base"] = Base(**base)
    found["steps"] = tuple(found["steps"])
    for name in ("timesteps", "sigmas"):
        found[name] = {count: tuple(times) for count, times in _mapping(found, name, source).items()}
    return AdapterCard(**found)


def model_card(
    card: AdapterCard,
    *,
    scheduler: str,
    licence: str,
    delta: bool = False,
    here: str = ".",
    caption: str = "a red apple",
) -> str:
    """Write the README of an adapter: what it is, its figures and the lines of diffusers that sample it.

    `scheduler` is the class name, `licence` an SPDX identifier (most often that of the base model), `delta` whether the
    adapter carries W - W_base of all weights in place of LoRA tensors, `here` the directory or Hub name that the
    sampling lines load from, and `caption` what they draw."""
    header = [
        "---",
        f"license: {licence.lower()}",
        f"base_model: {card.base.id}",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
    ]
    tags = ["tags:", "- delta-weights" if delta else "- lora", "- few-step", f"- {card.method}", "---", ""]
    evaluation = card.evaluation
    rows = [f"| {n} | {_times(card.timesteps[str(n)])} | {_figure(card.frechet(n))} |" for n in card.steps]
    network = evaluation.get("features", "the recorded network")
    measured = f"Frechet distance on features of {network}, protocol `{card.evaluation_digest}`."
    body = [
        f"# A few-step adapter for {card.base.id}",
        "",
        f"Distilled with the method `{card.method}` for {_times(card.steps)} steps; {card.default_steps} by default.",
        f"Sample it with its own scheduler and guidance scale {card.guidance_scale:g}: the base pipeline's",
        "defaults give wrong pictures and no error."
        + (" The scheduler comes with raystill." if scheduler in RAYSTILL_SCHEDULERS else ""),
        "",
        "```python",
        *_sampling_lines(card, scheduler, here, caption, delta=delta),
        "```",
        "",
        "| steps | timesteps | Frechet distance |",
        "|---|---|---|",
        *rows,
        "",
        measured if evaluation else "Not evaluated.",
        "",
        f"- base: `{card.base.id}`" + (f" at `{card.base.revision}`" if card.base.revision else ""),
        f"- recipe `{card.recipe_name}`, code commit `{card.commit}` (the recipe is in `{CARD_NAME}`)",
        f"- start: {json.dumps(canonical(card.start))}",
        f"- licence: {licence}",
    ]
    return "\n".join([*header, *tags, *body]) + "\n"


def _sampling_lines(card: AdapterCard, scheduler: str, here: str, caption: str, *, delta: bool) -> list[str]:
    part = f"pipeline.{card.part}"
    landing = []
    if scheduler == "CTMScheduler":  # its network is given the time at which each step ends
        landing = [f"pipeline.scheduler.attach({part}, load_file({here + '/landing.safetensors'!r}))"]
    settings = f"num_inference_steps={card.default_steps}, guidance_scale={card.guidance_scale}"
    if sigmas := card.sigmas.get(str(card.default_steps)):
        settings += f", sigmas={list(sigmas)}"
    revision = f", revision={card.base.revision!r}" if card.base.revision else ""
    imports = [f"from diffusers import {scheduler}, DiffusionPipeline"]
    if scheduler in RAYSTILL_SCHEDULERS:  # no stock scheduler jumps as the student does; diffusers is imported first
        imports = [
            "from diffusers import DiffusionPipeline",
            f"from {RAYSTILL_SCHEDULERS[scheduler]} import {scheduler}",
        ]
    weights = [f"pipeline.load_lora_weights({here!r}, weight_name='pytorch_lora_weights.safetensors')"]
    if delta or landing:
        imports = [*imports, "from safetensors.torch import load_file"]
    if delta:
        weights = [
            f"for name, gained in load_file({f'{here}/{card.part}_delta.safetensors'!r}).items():",
            f"    {part}.get_parameter(name).data += gained",
        ]
    if not card.loads_lora:  # such pipelines round the size of pictures to one of their own, and change captions
        settings += ", use_resolution_binning=False, clean_caption=False"
        if not delta:
            imports = [*imports, "from peft import PeftModel"]
            weights = [f"{part} = PeftModel.from_pretrained({part}, {here!r})"]
    base = repr(card.base.id)
    if card.base.id.startswith(SCHEME):  # no name of the Hub, and a directory of its own on every machine
        imports, base = [*imports, f"from {located.__module__} import located"], f"located({base})"
        revision = ""
    return [
        "import torch",
        *imports,
        f"pipeline = DiffusionPipeline.from_pretrained({base}{revision}, dtype=torch.float32)",
        f"pipeline.scheduler = {scheduler}.from_pretrained({here!r}, subfolder='scheduler')",
        *weights,
        *landing,
        f"picture = pipeline({caption!r}, {settings}).images[0]",
    ]


def describe(card: AdapterCard) -> str:
    """One line about an adapter: method, base, step counts and Frechet distances."""
    figures = json.dumps(card.evaluation.get("frechet", {}))
    steps = ", ".join(map(str, card.steps))
    return f"{card.method} for {card.base.id}, steps {steps}, Frechet distance by steps {figures}"


def _times(times: tuple[int | float, ...]) -> str:
    return ", ".join(f"{t:g}" for t in times)


def _figure(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"


def _mapping(found: dict[str, Any], name: str, source: str) -> dict[str, Any]:
    if not isinstance(found[name], dict):
        raise CardError(f"{source}: {name} is {type(found[name]).__name__}, expected an object")
    return dict(found[name])
