"""Targets and checkpoints that lie at addresses of format 1: used in place where nothing has changed, else named."""

import json
import logging
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from raystill.config.digest import canonical_json, digest
from raystill.config.legacy import Earlier, earlier
from raystill.data.derive import INDEX, Source, place
from raystill.data.store import Store
from raystill.training.task import Task, last_step

log = logging.getLogger(__name__)
ADOPTED = "adopted.json"  # at an address, in place of shards: where they are, and by which identity


def adopted(
    work: Store, stage: str, source: Source, depends_on: Mapping[str, Any], former: Iterable[Mapping[str, Any]] = ()
) -> tuple[Store, dict[str, Any]]:
    """Where the shards of a stage are or will be, and the identity that their index has: at their own address, or where
    an earlier version put the same ones. `former` are other values of what they depend on that were written then.
    """
    known = source.identity(**depends_on)
    target = place(work, stage, known)
    if target.exists(INDEX):
        return target, known
    if (note := _note(target)) is not None:
        return work.join(note["at"]), note["identity"]
    for values in ({}, *former):
        then, found = _earlier(source, {**depends_on, **values})
        old = work.join(f"{stage}/{digest(then)}")
        if old.exists(INDEX) or old.list():
            if _usable(stage, old, found):
                adopt(target, f"{stage}/{digest(then)}", then)
                return old, then
            break
    return target, known


def adopted_checkpoints(work: Store, target: Store, source: Source, task: Task) -> Store:
    """Where a training that has nothing at its own address goes on: where an earlier version left it, if no number of
    it has changed since, or at that address.
    """
    then, found = _earlier(source, {"task": task, "workers": task.training.lanes})  # of which each had a batch
    old = work.join(f"checkpoints/{digest(then)}")
    if last_step(old) and _usable("checkpoints", old, found):
        adopt(target, f"checkpoints/{digest(then)}", then)
        return old
    return target


def adopt(target: Store, at: str, then: Mapping[str, Any]) -> None:
    """Note at an address that what belongs there is at another one of the same work prefix, of this identity then."""
    target.write(ADOPTED, json.dumps({"at": at, "identity": then}, indent=1).encode())


def followed(work: Store, target: Store) -> Store:
    """The place that an address leads to."""
    note = _note(target)
    return target if note is None else work.join(note["at"])


def removal(uri: str) -> str:
    """What to type to remove a folder of a store."""
    return f"aws s3 rm --recursive {uri}" if uri.startswith("s3://") else f"rm -r {uri.removeprefix('file://')}"


def _note(target: Store) -> Any:
    return json.loads(target.read(ADOPTED)) if target.exists(ADOPTED) else None


def _earlier(source: Source, depends_on: Mapping[str, Any]) -> tuple[dict[str, Any], Earlier]:
    found = earlier(depends_on)
    return {**source.contents, **found.form}, found


def _usable(stage: str, old: Store, found: Earlier) -> bool:
    """Whether what an earlier version left is what these settings make now; says so, and what to type where not."""
    if found.same:
        log.info("%s of an earlier version, of the same settings, are used: %s", stage, old.uri)
        return True
    if found.raised:
        why = f"but {', '.join(found.raised)} makes other numbers now. To be rid of them: {removal(old.uri)}"
    else:
        names = {path: path.removeprefix("task.") for path in found.settings}
        typed = [f"--set {shlex.quote(f'{names[path]}={canonical_json(was)}')}" for path, was in found.settings.items()]
        why = f"made otherwise than these settings ask for; to use them: {' '.join(typed)}"
    log.warning("%s of an earlier version are at %s, %s. This run makes its own", stage, old.uri, why)
    return False
