"""What the folders of a work prefix belong to, what they take, and which of them nobody needs any more."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args, get_type_hints

from raystill.config.errors import UserError
from raystill.config.fingerprint import former_name
from raystill.data.derive import INDEX, contents_of
from raystill.data.objects import Entry
from raystill.data.shards import SUFFIXES
from raystill.data.store import Store
from raystill.methods.table import METHODS
from raystill.run.adoption import ADOPTED
from raystill.run.checkpoints import IDENTITY, RUNS, STAGE
from raystill.run.migrate import STAGES, held
from raystill.run.settings import Targets

BENCH = re.compile(r"bench/bench-\d+(-targets)?")  # folders that a bench leaves
ADDRESS = re.compile(r"[\w-]+/[0-9a-f]{16}")  # folders that a run leaves
MADE_OF_WEIGHTS = ("adapter", "trained")  # keys of an identity whose value is the entity tag of averaged weights
SETTLED_S = 86_400.0  # a folder in which something was written more recently may belong to a run that goes on
NAMES = {former_name(kind): kind.__name__ for kind in (*METHODS, *get_args(get_type_hints(Targets)["estimator"]))}


@dataclass(slots=True)
class Folder:
    """One folder of a work prefix."""

    place: str  # below the prefix
    size: int  # bytes
    holds: str
    made_from: list[str] = field(default_factory=list)  # places below the prefix
    used_by: list[str] = field(default_factory=list)  # places below the prefix
    runs: list[str] = field(default_factory=list)  # names of the runs that it belongs to, as far as they are noted
    unneeded: str = ""  # why nobody needs it; empty where somebody may


def folders(work: Store) -> list[Folder]:
    """The folders of a work prefix, each with what it was made from and what was made from it."""
    rows = {row.place: row for row in held(work, write=False)}
    identities = {place: _identity(work, place) for place in rows}
    files = {place: work.join(place).list() for place in rows}  # after what names them
    found = {}
    for place, row in rows.items():
        told = _told(identities[place])
        size = sum(entry.size for entry in files[place])
        bench = bool(BENCH.fullmatch(place))
        holds = "what a bench measured with" if bench else f"{row.holds}{f' ({told})' if told else ''}"
        found[place] = Folder(place, size, holds, unneeded="a bench is over when it ends" if bench else row.unneeded)
    _connect(found, identities, files)
    for place, folder in found.items():
        newest = max((entry.modified for entry in files[place]), default=0.0)
        ours = BENCH.fullmatch(place) or ADDRESS.fullmatch(place)
        if not ours or time.time() - newest < SETTLED_S:
            folder.unneeded = ""
        names = [e.key for e in files[place] if e.key.startswith(f"{RUNS}/")]
        _give(found, place, [work.join(place).read(key).decode(errors="replace") for key in names])
    return list(found.values())


def remove(work: Store, folder: Folder) -> None:
    """Delete a folder's files, those by which it is found first."""
    store = work.join(folder.place)
    for entry in sorted(store.list(), key=lambda entry: not entry.key.endswith(".json")):
        store.delete(entry.key)


def _connect(found: Mapping[str, Folder], identities: Mapping[str, Any], files: Mapping[str, Sequence[Entry]]) -> None:
    """Note for each folder which others it was made from, and which samples are of weights that are gone."""
    made = {_contents(entries): place for place, entries in files.items() if INDEX in {e.key for e in entries}}
    weights = {e.etag: place for place, entries in files.items() for e in entries if e.key.endswith(".safetensors")}
    for place, known in identities.items():
        tags = [str(known[key]) for key in MADE_OF_WEIGHTS if key in known]
        sources = [made.get(str(known.get("source_digest"))), *map(weights.get, tags), known.get("at")]
        for source in filter(None, sources):
            if source in found and source != place:
                found[place].made_from.append(source)
                found[source].used_by.append(place)
        if place.partition("/")[0] in STAGES and any(tag not in weights for tag in tags):
            found[place].unneeded = "of weights that are not here any more"


def _give(found: Mapping[str, Folder], place: str, names: list[str]) -> None:
    """Note runs at a folder, at what it was made from, and at what was made from a training's."""
    new = [name for name in names if name not in found[place].runs]
    if not new:
        return
    found[place].runs += new
    below = found[place].used_by if place.startswith(f"{STAGE}/") else []
    for other in (*found[place].made_from, *below):
        _give(found, other, new)


def _contents(entries: Sequence[Entry]) -> str:
    """The checksum by which whatever is made of shards names them."""
    return str(contents_of([entry for entry in entries if entry.key.endswith(SUFFIXES)])["source_digest"])


def _identity(work: Store, place: str) -> dict[str, Any]:
    """What a folder's results depend on, or where its note leads; empty where it has neither, or a damaged one."""
    for name in (INDEX, IDENTITY, ADOPTED):
        if work.exists(f"{place}/{name}"):
            try:
                read = json.loads(work.read(f"{place}/{name}"))
                return {"at": read["at"]} if name == ADOPTED else dict(read["identity"])
            except (UserError, ValueError, KeyError, TypeError):
                return {}
    return {}


def _told(known: Mapping[str, Any]) -> str:
    """The classes by which people know a result: its estimator, or its method; empty where it has none."""
    found = []
    for path in (("targets", "estimator"), ("task", "method"), ("method",)):
        part: Any = known
        for name in (*path, "kind"):
            part = part.get(name) if isinstance(part, Mapping) else None
        if isinstance(part, str):
            found.append(NAMES.get(part, part))
    return ", ".join(found)


def table(rows: Sequence[Folder]) -> str:
    """The folders as aligned text, and sums."""
    cells = [("folder", "size", "holds", "made from", "runs", "nobody needs it:")]
    cells += [(r.place, size(r.size), r.holds, _short(r.made_from), _short(r.runs), r.unneeded) for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    spare = [row for row in rows if row.unneeded]
    total = f"{len(rows)} folders, {size(sum(row.size for row in rows))}"
    return "\n".join([*lines, f"{total}; nobody needs {len(spare)} of them, {size(sum(row.size for row in spare))}"])


def as_json(rows: Sequence[Folder]) -> str:
    """The folders as JSON, for programs."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def size(count: int | float) -> str:
    """A number of bytes as text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _short(names: list[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "") or "-"
