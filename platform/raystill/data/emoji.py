"""Emoji sets from npm packages as captioned pictures: six drawing styles, one CLDR caption per emoji."""

import dataclasses
import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from raystill.config.errors import UserError
from raystill.data.pictures import encode_webp, load_square
from raystill.data.shards import Sample

LABELS_PACKAGE = "emojibase-data@17.0.0"
# The shortest base first, so that "medium-light" is not taken for "light".
_TONED = re.compile(r"(.+?)-(default|light|medium-light|medium|medium-dark|dark)")
_NAMED = {"#": " hash ", "*": " asterisk ", "&": " and "}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmojiSet:
    """One drawing style: `pattern` finds its files in the package; a stem is code points, or words if `by_words`."""

    name: str
    title: str
    credit: str
    package: str
    pattern: str
    style: str
    licence: str
    by_words: bool = False


_SETS = (
    EmojiSet(
        name="noto",
        title="Noto Emoji",
        credit="copyright Google LLC",
        package="emoji-datasource-google@16.0.0",
        pattern="img/google/64/*.png",
        style="noto",
        licence="Apache-2.0",
    ),
    EmojiSet(
        name="twemoji",
        title="Twemoji",
        credit="copyright Twitter, Inc. and other contributors",
        package="emoji-datasource-twitter@16.0.0",
        pattern="img/twitter/64/*.png",
        style="twemoji",
        licence="CC-BY-4.0",
    ),
    EmojiSet(
        name="openmoji",
        title="OpenMoji",
        credit="by the OpenMoji project, openmoji.org",
        package="openmoji@17.0.0",
        pattern="color/svg/*.svg",
        style="openmoji",
        licence="CC-BY-SA-4.0",
    ),
    EmojiSet(
        name="fluent-flat",
        title="Fluent Emoji (flat)",
        credit="copyright Microsoft Corporation",
        package="fluentui-emoji@1.3.0",
        pattern="icons/flat/*.svg",
        style="fluent flat",
        licence="MIT",
        by_words=True,
    ),
    EmojiSet(
        name="fluent-modern",
        title="Fluent Emoji (modern)",
        credit="copyright Microsoft Corporation",
        package="fluentui-emoji@1.3.0",
        pattern="icons/modern/*.svg",
        style="fluent modern",
        licence="MIT",
        by_words=True,
    ),
    EmojiSet(
        name="fluent-3d",
        title="Fluent Emoji (3D)",
        credit="copyright Microsoft Corporation",
        package="@lobehub/fluent-emoji-3d@1.1.0",
        pattern="assets/*.webp",
        style="fluent 3d",
        licence="MIT",
    ),
)
SETS = {item.name: item for item in _SETS}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """The caption of one emoji and its place in Unicode's order."""

    caption: str
    category: str
    subcategory: str


def plain_caption(label: str) -> str:
    """Reduce a CLDR label to lower-case letters, digits and spaces: "flag: Côte d’Ivoire" gives "flag cote divoire"."""
    text = unicodedata.normalize("NFKD", label.lower().replace("ı", "i"))
    text = "".join(_NAMED.get(letter, letter) for letter in text if not unicodedata.combining(letter))
    return " ".join(re.sub(r"[^a-z0-9]+", " ", re.sub(r"[’'.]", "", text)).split())


def plain_codepoints(codepoints: str) -> str:
    """Write code points as upper-case hexadecimals joined by '-', without FE0F, which only asks for colour."""
    return "-".join(point for point in codepoints.upper().split("-") if point != "FE0F")


def read_labels(package: Path) -> dict[str, Label]:
    """Read the CLDR labels of an unpacked `emojibase-data`, keyed by plain code points; UserError if there are none."""
    folder = package / "en"
    try:
        emoji = json.loads((folder / "data.json").read_text("utf-8"))
        messages = json.loads((folder / "messages.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(
            f"no emoji labels in {package}: {error}. Expected an unpacked {LABELS_PACKAGE}: npm pack {LABELS_PACKAGE}"
        ) from error
    groups = {item["order"]: item["key"] for item in messages["groups"]}
    subgroups = {item["order"]: item["key"] for item in messages["subgroups"]}
    labels: dict[str, Label] = {}
    for base in emoji:
        category, subcategory = groups.get(base.get("group"), "none"), subgroups.get(base.get("subgroup"), "none")
        for item in (base, *base.get("skins", ())):
            label = Label(caption=plain_caption(item["label"]), category=category, subcategory=subcategory)
            labels[plain_codepoints(item["hexcode"])] = label
    return labels


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Glyph:
    """One file of a set with its label; `codepoints` is empty where its name in words is none of Unicode's."""

    item: EmojiSet
    path: Path
    codepoints: str
    label: Label


def find_drawings(item: EmojiSet, package: Path, labels: dict[str, Label]) -> list[Glyph]:
    """List the labelled drawings of an unpacked package, sorted by file name; UserError if none is found."""
    paths = sorted(package.glob(item.pattern))
    if not paths:
        raise UserError(
            f"no {item.name} pictures at {package / item.pattern}; expected an unpacked npm package {item.package}"
        )
    if item.by_words:
        codepoints = {label.caption: points for points, label in labels.items()}
        return [_by_words(item, path, labels, codepoints) for path in paths]
    found = ((path, plain_codepoints(path.stem)) for path in paths)
    return [
        Glyph(item=item, path=path, codepoints=points, label=labels[points])
        for path, points in found
        if points in labels
    ]


def _by_words(item: EmojiSet, path: Path, labels: dict[str, Label], codepoints: dict[str, str]) -> Glyph:
    """Label a file such as `woman-surfing-dark.svg`, whose `-default` twin shows that a skin tone is meant."""
    caption = plain_caption(path.stem)
    toned = _TONED.fullmatch(path.stem)
    if toned and path.with_stem(f"{toned[1]}-default").is_file():
        base = plain_caption(toned[1])
        caption = base if toned[2] == "default" else f"{base} {plain_caption(toned[2])} skin tone"
    points = codepoints.get(caption, "")
    label = labels[points] if points else Label(caption=caption, category="none", subcategory="none")
    return Glyph(item=item, path=path, codepoints=points, label=label)


def draw(drawing: Glyph, size: int, with_style: bool) -> Sample:
    """Make a drawing's sample: `size` x `size` on white as lossless WebP, the caption, its place in Unicode as JSON."""
    label, item = drawing.label, drawing.item
    about = {"category": label.category, "subcategory": label.subcategory, "codepoints": drawing.codepoints}
    members = {
        "webp": encode_webp(load_square(drawing.path, size)),
        "txt": (f"{label.caption}, {item.style} style" if with_style else label.caption).encode(),
        "json": json.dumps(about, sort_keys=True).encode(),
    }
    # The file's stem, not the caption, makes the key: two files of a set may share a caption.
    return Sample(key=f"{item.name}-{drawing.path.stem.lower().replace('.', '_')}", members=members)


def attribution(items: Sequence[EmojiSet], size: int) -> str:
    """Write the credits that the sets' licences ask for, to stand beside the shards."""
    lines = [
        f"- {item.title}, {item.credit}; licence: {item.licence}; from the npm package `{item.package}`."
        for item in items
    ]
    changes = f"Changes: laid on white, scaled to {size} x {size} pixels if they were not, stored as lossless WebP."
    captions = f"Captions: Unicode CLDR short names (Unicode licence v3), simplified, from `{LABELS_PACKAGE}` (MIT)."
    return "\n".join(["# Attribution", "", "Pictures:", "", *lines, "", changes, "", captions, ""])
