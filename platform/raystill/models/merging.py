"""Merging an adapter into a pipeline: the adapter's base, or another fine-tune of that base."""

import shutil
import tempfile
from pathlib import Path

from raystill.config.errors import UserError
from raystill.models.adapter import add_trained
from raystill.models.artifact import LANDING_NAME, let_read, verify
from raystill.models.card import RAYSTILL_SCHEDULERS
from raystill.models.hub import base_at
from raystill.models.parts import load_whole
from raystill.models.pipeline import check_pipeline, licence_of
from raystill.models.revision import is_of, revision
from raystill.models.sampling import load_scheduler
from raystill.models.stock import kind_of, read_scheduler, same_schedule


def merge_adapter(directory: Path, onto: Path | None, out: Path) -> str:
    """Write a copy of the pipeline in `onto`, by default the adapter's base, to `out`, with the adapter's weights added
    to its network; returns a line that describes the copy. The adapter's scheduler replaces the pipeline's where
    diffusers has its class. UserError where adapter and pipeline do not fit, or where there is something at `out`.
    """
    card = verify(directory)
    base = onto or base_at(card.base.id, card.base.revision)
    backbone = check_pipeline(base)
    found = revision(base)
    if onto is None and not is_of(base, card.base.revision):
        raise UserError(
            f"the adapter is for {card.base.id} at revision {card.base.revision}, and it is at {found} now; "
            "name what to merge into: --onto DIRECTORY"
        )
    ours, theirs = load_scheduler(directory), read_scheduler(base)
    if not same_schedule(ours, theirs):
        raise UserError(
            f"the adapter is for a network that predicts {kind_of(ours)} on the schedule of {card.base.id}, and {base} "
            f"predicts {kind_of(theirs)} on its own; give a fine-tune of the adapter's base: --onto DIRECTORY"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already; name a new directory: --out DIRECTORY")
    if LANDING_NAME in card.files:
        raise UserError(
            "a CTM student is told where each step lands, which no plain pipeline does: draw with the adapter itself"
        )
    pipeline = load_whole(base, backbone, theirs)
    add_trained(getattr(pipeline, backbone.network), directory, card)
    name = type(ours).__name__
    if name in RAYSTILL_SCHEDULERS:
        said = f"sample it with the adapter's {name}, {directory}/scheduler,"
    else:
        pipeline.scheduler = ours
        said = f"sample it with its own {name}"
    said = f"{said} and guidance scale {card.guidance_scale:g}"
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        draft = Path(scratch) / "pipeline"
        pipeline.save_pretrained(draft)
        let_read(draft)
        of = f"`{base}` at `{found}` with an adapter of the method `{card.method}`, recipe {card.recipe_name}"
        (draft / "README.md").write_text(f"---\nlicense: {licence_of(base)}\n---\n\n{of}; {said}.\n")
        if out.exists():
            shutil.rmtree(out)
        draft.rename(out)
    fits = "its base" if is_of(base, card.base.revision) else "another pipeline than its base"
    return f"{out}: the adapter on {fits}, {base}; {said}"
