"""Results of earlier versions, at addresses of format 1 (digests of all settings): used where they are if nothing that
they depend on has changed, else named in a warning.
"""

import json
import logging
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from raystill.config.digest import canonical_json, digest
from raystill.config.legacy import Earlier, earlier
from raystill.data.derive import INDEX, Source, place
from raystill.data.store import Store, removal
from raystill.training.task import Task, last_step

log = logging.getLogger(__name__)
ADOPTED = "adopted.json"  # a note at an address, in place of shards: where they are, and with which identity


def adopted(
    work: Store, stage: str, source: Source, depends_on: Mapping[str, Any], former: Iterable[Mapping[str, Any]] = ()
) -> tuple[Store, dict[str, Any]]:
    """The store of a stage's shards, at their own address or where an earlier version put the same ones, and the
    identity that their index has. `former` are other values of what the shards depend on, as earlier versions wrote
    them.
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
    """The store in which a training without a checkpoint at its own address goes on: an earlier version's, if no number
    of the training has changed since, or the one at its address.
    """
    then, found = _earlier(source, {"task": task, "workers": task.training.lanes})  # each worker had a batch
    old = work.join(f"checkpoints/{digest(then)}")
    if last_step(old) and _usable("checkpoints", old, found):
        adopt(target, f"checkpoints/{digest(then)}", then)
        return old
    return target


def adopt(target: Store, at: str, then: Mapping[str, Any]) -> None:
    """Write a note at an address: what belongs there is at another one of the work prefix, with this identity."""
    target.write(ADOPTED, json.dumps({"at": at, "identity": then}, indent=1).encode())


def followed(work: Store, target: Store) -> Store:
    """The store that an address leads to: the one that a note there names, or the address itself."""
    note = _note(target)
    return target if note is None else work.join(note["at"])


def _note(target: Store) -> Any:
    return json.loads(target.read(ADOPTED)) if target.exists(ADOPTED) else None


def _earlier(source: Source, depends_on: Mapping[str, Any]) -> tuple[dict[str, Any], Earlier]:
    found = earlier(depends_on)
    return {**source.contents, **found.form}, found


def _usable(stage: str, old: Store, found: Earlier) -> bool:
    """Whether an earlier version's results are what these settings give now; logs so, or what to type where not."""
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
