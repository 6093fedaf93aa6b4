"""What the folders of a work prefix belong to, what they take, and which of them nobody needs any more."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import unquote

from raystill.data.derive import INDEX, Source
from raystill.data.objects import Entry
from raystill.data.shards import list_shards
from raystill.data.store import Store
from raystill.run.adoption import ADOPTED
from raystill.run.checkpoints import IDENTITY, RUNS, STAGE
from raystill.run.migrate import EMPTY, held

BENCH = "bench"  # stage of the folders that a bench leaves
MADE_OF_WEIGHTS = ("adapter", "trained")  # keys of an identity whose value is the entity tag of averaged weights


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
    sizes: dict[str, list[Entry]] = {}
    for entry in work.list():
        sizes.setdefault("/".join(entry.key.split("/")[:2]), []).append(entry)
    rows = {row.place: row for row in held(work, write=False)}
    found, identities = {}, {place: _identity(work, place) for place in rows}
    for place, row in rows.items():
        size = sum(entry.size for entry in sizes.get(place, []))
        told = _told(identities[place])
        found[place] = Folder(place, size, f"{row.holds}{f' ({told})' if told else ''}")
        if place.startswith(f"{BENCH}/"):
            found[place].holds, found[place].unneeded = "what a bench measured with", "a bench is over when it ends"
        elif row.holds == EMPTY:
            found[place].unneeded = "a training that was stopped before its first checkpoint"
        elif "to be rid of it" in row.becomes or row.becomes.startswith("computed anew"):
            found[place].unneeded = "of an earlier version; no run of this one finds it"
    _connect(work, found, identities, sizes)
    for place in found:
        _give(found, place, [unquote(key) for entry in sizes.get(place, []) for key in _noted(entry.key)])
    return list(found.values())


def remove(work: Store, unneeded: list[Folder]) -> int:
    """Delete the files of folders, of each the newest pointers first; return how many bytes they took."""
    for folder in unneeded:
        store = work.join(folder.place)
        for entry in sorted(store.list(), key=lambda entry: not entry.key.endswith(".json")):
            store.delete(entry.key)
    return sum(folder.size for folder in unneeded)


def _connect(
    work: Store, found: Mapping[str, Folder], identities: Mapping[str, Any], files: Mapping[str, list[Entry]]
) -> None:
    """Note for each folder which others it was made from, and which samples are of weights that are gone."""
    made = {_contents(work, place): place for place in found if identities[place].get("source_digest")}
    weights = {e.etag: place for place, entries in files.items() for e in entries if e.key.endswith(".safetensors")}
    for place, known in identities.items():
        tags = [known[key] for key in MADE_OF_WEIGHTS if key in known]
        sources = [made.get(str(known.get("source_digest"))), *map(weights.get, tags), known.get("at")]
        for source in filter(None, sources):
            if source in found and source != place:
                found[place].made_from.append(source)
                found[source].used_by.append(place)
        if any(tag not in weights for tag in tags):
            found[place].unneeded = "of weights that are not here any more"


def _noted(key: str) -> list[str]:
    """The quoted name of the run that a file of a checkpoint store notes, if it does."""
    _, _, rest = key.partition(f"/{RUNS}/")
    return [rest] if rest else []


def _give(found: Mapping[str, Folder], place: str, names: list[str]) -> None:
    """Note runs at a folder, at what it was made from, and at what was made from it."""
    new = [name for name in names if name not in found[place].runs]
    if not new:
        return
    found[place].runs += new
    below = found[place].used_by if place.startswith(f"{STAGE}/") else []
    for other in (*found[place].made_from, *below):
        _give(found, other, new)


def _contents(work: Store, place: str) -> str:
    """The checksum by which whatever is made of a folder's shards names them."""
    store = work.join(place)
    return str(Source(store, tuple(list_shards(store))).contents["source_digest"]) if store.exists(INDEX) else place


def _identity(work: Store, place: str) -> dict[str, Any]:
    """What a folder's results depend on, or where its note leads; empty where it has neither."""
    for name in (INDEX, IDENTITY, ADOPTED):
        if work.exists(f"{place}/{name}"):
            try:
                read = json.loads(work.read(f"{place}/{name}"))
                return {"at": read["at"]} if name == ADOPTED else dict(read["identity"])
            except (ValueError, KeyError, TypeError):  # damaged: `held` says so
                return {}
    return {}


def _told(known: Mapping[str, Any]) -> str:
    """The classes by which people know a result: its estimator, or its method; empty where it has none."""
    parts = (known.get("targets", {}).get("estimator"), known.get("task", {}).get("method"), known.get("method"))
    return ", ".join(str(part["kind"]) for part in parts if part)


def table(rows: list[Folder]) -> str:
    """The folders as aligned text, and sums."""
    cells = [("folder", "size", "holds", "made from", "runs", "nobody needs it:")]
    cells += [(r.place, size(r.size), r.holds, _short(r.made_from), _short(r.runs), r.unneeded) for r in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    spare = [row for row in rows if row.unneeded]
    total = f"{len(rows)} folders, {size(sum(row.size for row in rows))}"
    return "\n".join([*lines, f"{total}; nobody needs {len(spare)} of them, {size(sum(row.size for row in spare))}"])


def as_json(rows: list[Folder]) -> str:
    """The folders as JSON, for programs."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def size(count: int | float) -> str:
    """A number of bytes as text."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def _short(places: list[str]) -> str:
    return ", ".join(places[:2]) + (f" and {len(places) - 2} more" if len(places) > 2 else "") or "-"
