"""What a work prefix and a folder of adapters hold, and how this version uses it; nothing is deleted or unpickled."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from raystill.config.annotations import MisfitError
from raystill.config.digest import canonical_json, digest
from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint, former_name, identity
from raystill.config.legacy import earlier, revived
from raystill.config.overrides import paths
from raystill.config.shipped import located
from raystill.data.derive import INDEX, place
from raystill.data.records import Reading
from raystill.data.store import Store, removal
from raystill.models.card import CARD_NAME, Base, from_json
from raystill.models.revision import is_of
from raystill.run.adoption import ADOPTED, adopt
from raystill.run.checkpoints import IDENTITY, STAGE
from raystill.run.settings import Targets
from raystill.training.task import last_step

TARGETS = "targets"
STAGES = (TARGETS, "pictures", "latents", "teacher-samples", "student-samples", "probes", "overlap", "gradients")
KINDS = {former_name(kind): kind for kind in (Reading, Targets, *get_args(get_type_hints(Targets)["estimator"]))}
AS_IS = "found as it is"
EARLIER = "of an earlier version; no run of this one finds it"
UNBEGUN = "a training that was stopped before its first checkpoint"


@dataclass(frozen=True, slots=True)
class Held:
    """One line of the list of what is held: its place, what it holds, and what becomes of it."""

    place: str
    holds: str
    becomes: str
    unneeded: str = ""  # why nobody needs it; empty where somebody may


def held(work: Store, *, write: bool) -> Iterator[Held]:
    """List what a work prefix holds. With `write`, old targets that today's settings can ask for get a note at their
    address of today: runs then find them whatever knobs have changed.
    """
    for stage in work.folders():
        for name in work.join(stage).folders():
            folder, at = work.join(f"{stage}/{name}"), f"{stage}/{name}"
            try:
                if stage == STAGE:
                    yield Held(at, *_checkpoints(folder))
                elif stage in STAGES:
                    yield Held(at, *_derived(work, stage, name, write))
                else:
                    yield Held(at, "?", "not understood: no stage of this version, left alone")
            except (UserError, ValueError, KeyError, TypeError) as error:
                yield Held(at, "?", f"not understood, left alone: {type(error).__name__}: {error}")


def held_adapters(directory: Path) -> Iterator[Held]:
    """List the adapters in the folders of a directory."""
    for card in sorted(directory.glob(f"*/{CARD_NAME}")):
        at = str(card.parent)
        try:
            found = from_json(card.read_text(), str(card))
        except (UserError, OSError, ValueError) as error:
            yield Held(at, "?", f"not understood, left alone: {error}")
            continue
        version = "this version" if found.fingerprint else "an earlier version"
        yield Held(at, f"adapter of {found.method} by {version}", _base(found.base))


def table(rows: list[Held]) -> str:
    """The list as aligned text, for people."""
    cells = [("place", "holds", "becomes"), *((row.place, row.holds, row.becomes) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(2)]
    return "\n".join(f"{a.ljust(widths[0])}  {b.ljust(widths[1])}  {c}".rstrip() for a, b, c in cells)


def as_json(rows: list[Held]) -> str:
    """The list as JSON, for programs."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def _base(base: Base) -> str:
    try:
        fits = is_of(located(base.id), base.revision)
    except UserError:
        return f"read as it is; its base {base.id} is not here"
    return "read as it is" if fits else f"read as it is; {base.id} is not the base that it was made on any more"


def _checkpoints(folder: Store) -> tuple[str, ...]:
    reached = last_step(folder)
    if folder.exists(IDENTITY):
        task = json.loads(folder.read(IDENTITY))["task"]
        what = f"training of the {task}, step {reached}"
        return what, f"{AS_IS}: a run of the same settings goes on", "" if reached else UNBEGUN
    if folder.exists(ADOPTED):
        return "note", f"leads to {json.loads(folder.read(ADOPTED))['at']}"
    if reached == 0:
        return "no checkpoint", f"left alone; to be rid of it: {removal(folder.uri)}"
    return (
        f"training by an earlier version, step {reached}",
        "a run of the same settings goes on with it where none of its parts was revised, and else names it",
    )


def _derived(work: Store, stage: str, name: str, write: bool) -> tuple[str, ...]:
    folder = work.join(f"{stage}/{name}")
    if not folder.exists(INDEX):
        if folder.exists(ADOPTED):
            return "note", f"leads to {json.loads(folder.read(ADOPTED))['at']}"
        return "unfinished", "a run of the same settings goes on"
    index = json.loads(folder.read(INDEX))
    then, count = index["identity"], sum(shard["count"] for shard in index["shards"])
    if name == fingerprint(then):
        return f"{count} samples", AS_IS
    if name != digest(then):
        return f"{count} samples", "not understood: its address is of something else, left alone"
    what = f"{count} samples by an earlier version"
    if stage != TARGETS:
        return what, f"computed anew; to be rid of it: {removal(folder.uri)}", EARLIER
    return what, *_old_targets(work, name, then, write)


def _old_targets(work: Store, name: str, then: dict[str, Any], write: bool) -> tuple[str, ...]:
    """What becomes of targets of an earlier version, by the identity in their index, and why nobody needs them."""
    try:
        settings = {part: revived(then[part], KINDS) for part in ("reading", "targets")}
    except (MisfitError, UserError):
        return ("not understood: of settings that no version had, left alone",)
    found = earlier(settings)
    if found.raised:
        return f"computed anew, since {', '.join(found.raised)} makes other numbers now", EARLIER
    known = {**then, **{part: identity(value) for part, value in settings.items()}}
    target = place(work, TARGETS, known)
    asked = " ".join(f"--set {path}={canonical_json(value)}" for path, value in _asked(settings["targets"]).items())
    if write and not target.exists(ADOPTED):
        adopt(target, f"{TARGETS}/{name}", then)
    return (f"used by runs with targets.estimator={type(settings['targets'].estimator).__name__} {asked}".rstrip(),)


def _asked(targets: Targets) -> dict[str, Any]:
    """The settings with which a run asks for these targets: by path, those that differ from the defaults."""
    plain = Targets(estimator=type(targets.estimator)())
    default, own = paths(plain), paths(targets)
    return {f"targets.{path}": value for path, value in own.items() if value != default[path]}
