"""The families that students are distilled from, by the class of their pipeline."""

from pathlib import Path

from raystill.config.errors import UserError
from raystill.models.backbones.backbone import Backbone
from raystill.models.backbones.pixart import PixArt
from raystill.models.backbones.settings import Settings
from raystill.models.backbones.stable_diffusion import StableDiffusion
from raystill.models.backbones.stable_diffusion_3 import StableDiffusion3
from raystill.models.backbones.stable_diffusion_xl import StableDiffusionXL

FAMILIES: tuple[type[Backbone], ...] = (StableDiffusion, StableDiffusionXL, PixArt, StableDiffusion3)
BACKBONES = {pipeline: family for family in FAMILIES for pipeline in family.pipelines}


def backbone_of(directory: Path) -> Backbone:
    """The family of the pipeline in a directory; UserError where there is no pipeline, where it is of an unknown family
    or where it lacks a part. Reads small files only, and no part's settings.
    """
    settings = Settings(directory)
    found = str(settings.index.get("_class_name"))
    if found not in BACKBONES:
        raise UserError(
            f"{settings.here} is a {found}; supported are {', '.join(BACKBONES)}. To add a family of pipelines: "
            "docs/extending/backbone.md"
        )
    family = BACKBONES[found]
    needed = [part for part in (*family.encoders, family.network, "vae", "scheduler") if part not in family.optional]
    missing = [part for part in needed if settings.part_class(part) is None or not (directory / part).is_dir()]
    there = [name for name in family.optional if settings.part_class(name) is not None]
    if there and len(there) < len(family.optional):  # all of them or none
        missing += [name for name in family.optional if name not in there]
    if missing:
        raise UserError(f"{settings.here} is a {found} without {', '.join(missing)}: fetch or write the pipeline anew")
    if settings.part_class(family.network) != family.model:
        raise UserError(
            f"{settings.here} is a {found} whose {family.network} is a {settings.part_class(family.network)}; expected "
            f"a {family.model}"
        )
    return family(settings)
