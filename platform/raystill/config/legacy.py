"""Addresses of format 1, which were digests of all settings, and how results stored there are found by today's
settings.

For results that were made before `config.fingerprint`. Nothing else needs this file: once nobody has such results, it
can go.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from raystill.config.annotations import MisfitError, fit
from raystill.config.digest import canonical
from raystill.config.fingerprint import (
    as_introduced,
    former_name,
    identity,
    introduced_value,
    is_group,
    knobs,
    revision_of,
)
from raystill.config.shipped import SCHEME

# Every class of settings that addresses depended on, with its fields in that format.
FIELDS = {
    name: tuple(fields.split())
    for name, fields in {
        "ADD": "steps guidance distillation adversarial penalty features learning_rate immiscible",
        "Assigned": "group",
        "Autoencoder": "kl_weight edge_weight learners needs",
        "AutoencoderShape": "channels widths layers latent_channels groups",
        "AutoencoderTask": "shape method optimizer training name",
        "CTM": "intervals most denoising guidance premetric immiscible target_decay",
        "DMD2": "steps ratio guidance lowest adversarial features learning_rate",
        "DenoiserShape": "widths layers heads groups text_width text_layers text_heads text_length vocabulary",
        "DenoiserTask": "tokens latent_channels latent_size kind caption_dropout shape optimizer training name",
        "DiffusionPath": "",
        "DistillTask": "teacher method weights optimizer training picture_captions name",
        "Encoded": "",
        "Expectation": "steps guidance solver rho",
        "Full": "",
        "Generated": "steps guidance solver rho",
        "GridTimes": "base delta power warmup_steps learning_rate instance hidden knots cells",
        "Guidance": "low high",
        "Independent": "",
        "Inverted": "steps guidance solver rho",
        "LCM": "intervals guidance premetric immiscible target_decay",
        "Lightning": "stages first stage_steps guidance features learning_rate premetric immiscible",
        "LogitNormalTimes": "mean std importance",
        "Lora": "rank alpha targets",
        "Objective": "target distance huber weighting",
        "Optimizer": "learning_rate warmup_steps decay final_fraction beta_1 beta_2 weight_decay clip_norm",
        "PairedDiffusionPath": "",
        "PeRFlow": "windows substeps target guidance synchronised times premetric immiscible caption_dropout",
        "PhasedRectified": "windows substeps times guidance premetric immiscible",
        "PseudoHuber": "c",
        "RayFlow": "path times objective",
        "RayPath": "sigma",
        "Reading": "picture_size channels allow_empty_caption drop_captions max_bad_fraction",
        "Rectified": "times premetric consistency_from intervals",
        "Reflow": "times premetric one_step_from",
        "SCott": "intervals substeps eta guidance premetric immiscible target_decay",
        "SamplingTimes": "steps start_share",
        "SecondMomentTimes": "base delta power warmup_steps learning_rate instance hidden bins",
        "Squared": "",
        "SteinTimes": (
            "base delta power warmup_steps learning_rate instance hidden knots components bandwidth subset draws"
        ),
        "StraightPath": "",
        "TCD": "intervals segments stage_steps guidance premetric immiscible target_decay",
        "Targets": "estimator shards seed batch_size precision",
        "Tokens": "vocabulary start end empty",
        "Training": "steps batch_size seed average_decay precision log_every checkpoint_every picture_every",
        "UShapedTimes": "steepness importance",
        "UniformTimes": "",
        "VectorHuber": "c",
    }.items()
}
# Present names of renamed fields, by class and former name.
RENAMED = {("Training", "batch_size"): "lane_size"}
# Defaults of removed fields, by class and name.
GONE: dict[tuple[str, str], Any] = {
    ("GridTimes", "power"): 0.5,
    ("SecondMomentTimes", "power"): 1.0,
    ("SteinTimes", "power"): 0.5,
    ("SteinTimes", "subset"): 8,
    ("SteinTimes", "draws"): 4,
}


@dataclass(slots=True)
class Earlier:
    """Settings in the form of addresses of format 1, and how results that were made then differ from what the settings
    make now.
    """

    form: Any  # the settings as canonical JSON of format 1
    settings: dict[str, Any] = field(default_factory=dict)  # dotted path -> value then, where it differs now
    raised: list[str] = field(default_factory=list)  # classes that are new or whose results have changed since

    @property
    def same(self) -> bool:
        """Whether results that were made then equal what the settings make now."""
        return not self.settings and not self.raised


def earlier(value: Any) -> Earlier:
    """Settings of today in the form of addresses of format 1, without the fields that came later."""
    found = Earlier(None)
    found.form = _form(value, "", found)
    return found


def _form(value: Any, path: str, found: Earlier) -> Any:
    if is_group(value):
        return _group(value, path, found)
    if isinstance(value, Mapping):
        return {str(k): _form(v, f"{path}{k}.", found) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_form(v, f"{path}{i}.", found) for i, v in enumerate(value)]
    return canonical(value.removeprefix(SCHEME) if isinstance(value, str) else value)


def _group(value: Any, path: str, found: Earlier) -> dict[str, Any]:
    kind: type = type(value)
    name_then = former_name(kind)
    if name_then not in FIELDS:
        found.raised.append(f"{kind.__name__} (new)")
    elif (revision := revision_of(kind)) != 1:
        found.raised.append(f"{kind.__name__} (revision {revision})")
    known = FIELDS.get(name_then, ())
    form = {"kind": name_then, **{name: default for (of, name), default in GONE.items() if of == name_then}}
    former = {now: then for (of, then), now in RENAMED.items() if of == name_then}
    for declared in dataclasses.fields(value):
        inner = getattr(value, declared.name)
        name = former.get(declared.name, former_name(declared))
        if name in known:
            form[name] = _form(inner, f"{path}{name}.", found)
        elif name not in knobs(kind) and not as_introduced(declared, identity(inner)):
            found.settings[f"{path}{name}"] = introduced_value(declared)
    return form


def revived(form: Any, kinds: Mapping[str, type]) -> Any:
    """Settings rebuilt from canonical JSON of format 1 with the classes in `kinds`, by first names; later fields
    have the values that they were introduced with. MisfitError for JSON of other classes or fields.
    """
    if not isinstance(form, Mapping) or "kind" not in form:
        return form
    kind = kinds.get(str(form["kind"]))
    if kind is None or set(form) - {"kind"} != set(FIELDS.get(former_name(kind), ())):
        raise MisfitError
    of = former_name(kind)
    renamed = {former_name(field): field.name for field in dataclasses.fields(kind)}
    known: dict[str, Any] = {
        RENAMED.get((of, str(name)), renamed.get(str(name), str(name))): revived(value, kinds)
        for name, value in form.items()
        if name != "kind" and (of, name) not in GONE
    }
    hints = get_type_hints(kind)
    return kind(**{name: fit(value, hints[name]) for name, value in {**_later(kind, known), **known}.items()})


def _later(kind: type, known: Mapping[str, Any]) -> dict[str, Any]:
    """Introduced values, by name, of a class's fields that `known` lacks and that count in addresses."""
    later = [f for f in dataclasses.fields(kind) if f.name not in known and f.name not in knobs(kind)]
    return {field.name: introduced_value(field) for field in later}
