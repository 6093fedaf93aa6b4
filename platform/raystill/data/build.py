"""Shards from a folder of captioned pictures or from emoji sets, in a shuffled order that a seed fixes."""

import dataclasses
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from raystill.config.errors import UserError
from raystill.data.emoji import LABELS_PACKAGE, SETS, Glyph, attribution, draw, find_drawings, read_labels
from raystill.data.packages import fetch_package
from raystill.data.pictures import UnreadablePictureError, encode_webp, read_picture, shrink
from raystill.data.shards import Sample, write_shards
from raystill.data.store import Store

EXTENSIONS = {".png": "png", ".jpg": "jpg", ".jpeg": "jpg", ".webp": "webp"}
METADATA = "metadata.jsonl"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Samples that are made as they are taken: `total` counts their files, `skipped` fills with undecodable ones."""

    total: int
    samples: Iterator[Sample]
    skipped: list[str]
    attribution: str = ""  # Markdown; the credits that the pictures' licences ask for


def build_shards(source: Source, store: Store, per_shard: int = 256) -> str:
    """Write a source's shards and credits (ATTRIBUTION.md) with a progress bar; return a summary with bad files."""
    progress = tqdm(source.samples, total=source.total, unit="picture")
    # A generator, as a runtime type checker takes the bar itself for a container and draws a sample to look at.
    shards = list(write_shards(store, (sample for sample in progress), per_shard))
    if source.attribution:
        store.write("ATTRIBUTION.md", source.attribution.encode())
    written = f"{len(shards)} shards, {sum(shard.size for shard in shards) / 1e6:.1f} MB, in {store.uri}"
    return "\n".join(
        [
            *(f"skipped {line}" for line in source.skipped),
            f"{written}; {len(source.skipped)} of {source.total} pictures skipped",
        ]
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FolderBuild:
    """A folder of pictures with captions: .txt beside each, or metadata.jsonl with {"file_name": ..., "text": ...}."""

    folder: Path
    size: int | None = None  # pixels of the shorter side, stored as lossless WebP; None keeps the files as they are
    allow_empty_caption: bool = False
    max_bad_fraction: float = 0.05  # share of pictures that may fail to decode; more of them stop the build
    seed: int = 0  # seed of the samples' shuffled order


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmojiBuild:
    """Emoji sets by name (see `emoji.SETS`), fetched from npm into `cache` or read from where they were unpacked."""

    sets: Sequence[str]
    cache: Path = Path("~/.cache/raystill/npm")
    unpacked: dict[str, Path] = dataclasses.field(default_factory=dict)  # package name@version -> folder
    size: int = 64  # pixels of each side
    with_style: bool | None = None  # captions end in ", noto style"; None: only where there are several sets
    seed: int = 0  # seed of the samples' shuffled order


def folder_source(build: FolderBuild) -> Source:
    """A folder's captioned pictures in shuffled order; UserError for none, missing captions or clashing names."""
    paths = _picture_files(build.folder)
    captions = _captions(build, paths)
    _refuse_clashes(build.folder, paths)
    random.Random(build.seed).shuffle(paths)
    skipped: list[str] = []
    return Source(total=len(paths), samples=_folder_samples(build, paths, captions, skipped), skipped=skipped)


def _picture_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not a folder; expected one that holds pictures ({', '.join(EXTENSIONS)}) and captions."
        )
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS and path.is_file())
    if not paths:
        raise UserError(f"no pictures in {folder}; expected files that end in {', '.join(EXTENSIONS)}.")
    return paths


def _captions(build: FolderBuild, paths: Sequence[Path]) -> dict[Path, str]:
    """Give every picture its caption, the .txt beside it first; UserError names pictures that have none."""
    listed = _read_metadata(build.folder / METADATA)
    captions: dict[Path, str] = {}
    for path in paths:
        beside = path.with_suffix(".txt")
        text = _read_text(beside) if beside.is_file() else listed.get(path, "")
        captions[path] = " ".join(text.split())
    missing = [str(path) for path in paths if not captions[path]]
    if missing and not build.allow_empty_caption:
        raise UserError(
            f"{len(missing)} of {len(paths)} pictures have no caption, such as {', '.join(missing[:3])}. "
            f"Write each into a .txt file beside its picture, or into {build.folder / METADATA}, "
            "or allow empty ones with --allow-empty-caption."
        )
    return captions


def _read_text(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save the caption as UTF-8."
        ) from error


def _read_metadata(path: Path) -> dict[Path, str]:
    """Read metadata.jsonl, where there is one, as picture file -> text; UserError names the line that is wrong."""
    listed: dict[Path, str] = {}
    lines = _read_text(path).splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            picture, text = path.parent / row["file_name"], row["text"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f'{path} line {number}: expected {{"file_name": "a.png", "text": "a caption"}}, found {line[:80]!r}'
            ) from error
        if not isinstance(text, str) or not picture.is_file():
            raise UserError(
                f"{path} line {number}: there is no picture {picture}, or its text is not a string; found {line[:80]!r}"
            )
        listed[picture] = text
    return listed


def _key(folder: Path, path: Path) -> str:
    """Name a sample after its file; dots become '_', as what follows the first dot is the member's extension."""
    return path.relative_to(folder).with_suffix("").as_posix().replace(".", "_").replace("\\", "_")


def _refuse_clashes(folder: Path, paths: Sequence[Path]) -> None:
    seen: dict[str, Path] = {}
    for path in paths:
        first = seen.setdefault(_key(folder, path), path)
        if first is not path:
            raise UserError(f"{first} and {path} would have the same key {_key(folder, path)!r}; rename one of them.")


def _folder_samples(
    build: FolderBuild, paths: Sequence[Path], captions: dict[Path, str], skipped: list[str]
) -> Iterator[Sample]:
    for path in paths:
        try:
            extension, data = _picture_bytes(path, build.size)
        except UnreadablePictureError as error:
            skipped.append(str(error))
            _refuse_too_many(build, len(paths), skipped)
            continue
        yield Sample(key=_key(build.folder, path), members={extension: data, "txt": captions[path].encode()})


def _picture_bytes(path: Path, size: int | None) -> tuple[str, bytes]:
    """Give a picture's extension and bytes; it is decoded even where it is kept, so that training meets no bad one."""
    data = path.read_bytes()
    picture = read_picture(data, str(path))
    if size is None:
        return EXTENSIONS[path.suffix.lower()], data
    return "webp", encode_webp(shrink(picture, size))


def _refuse_too_many(build: FolderBuild, total: int, skipped: Sequence[str]) -> None:
    if len(skipped) > build.max_bad_fraction * total:
        named = "\n  ".join(skipped[:10])
        raise UserError(
            f"{len(skipped)} of {total} pictures do not decode, more than {build.max_bad_fraction:.0%}:\n  {named}\n"
            "Repair or remove them, or raise --max-bad-fraction. Delete the shards written so far: they are not all."
        )


def emoji_source(build: EmojiBuild) -> Source:
    """The sets' captioned drawings in shuffled order, missing packages fetched; UserError for a name that is no set."""
    unknown = [name for name in build.sets if name not in SETS]
    if unknown or not build.sets:
        raise UserError(f"emoji sets {unknown or 'none'} are not known; expected some of: {', '.join(SETS)}.")
    labels = read_labels(_package(build, LABELS_PACKAGE))
    drawings: list[Glyph] = []
    for name in dict.fromkeys(build.sets):
        drawings += find_drawings(SETS[name], _package(build, SETS[name].package), labels)
    random.Random(build.seed).shuffle(drawings)
    with_style = len(set(build.sets)) > 1 if build.with_style is None else build.with_style
    samples = (draw(drawing, build.size, with_style) for drawing in drawings)
    credits = attribution([SETS[name] for name in dict.fromkeys(build.sets)], build.size)
    return Source(total=len(drawings), samples=samples, skipped=[], attribution=credits)


def _package(build: EmojiBuild, spec: str) -> Path:
    return build.unpacked[spec] if spec in build.unpacked else fetch_package(spec, build.cache.expanduser())
