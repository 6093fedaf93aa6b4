"""Samples as rows of arrays: decoding source pictures, and the array members of derived shards."""

import hashlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob, introduced
from raystill.data.pictures import DAMAGE, Frame, cropped, square_on_white
from raystill.data.shards import Sample

CROPS = ("none", "center", "random")
PICTURE_MEMBERS = ("png", "jpg", "jpeg", "webp")
Row = dict[str, Any]  # "key" and "caption" as str, everything else a numpy array
_FORMER = {"condition.npy": "condition.prompt.npy"}  # when there was one array of it


class RejectedSampleError(Exception):
    """A sample that cannot be used; the message is `key: reason`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Settings that say how source samples are read into rows."""

    picture_size: int = introduced(32)  # pixels of a side; all pictures are made square
    # how pictures that are not square are made so: "none" lays them whole on white, "center" and "random" cut a square
    # out of them, whose place along the longer side is the middle, or follows from key and `crop_seed`
    crop: str = introduced("none")
    crop_seed: int = introduced(0)
    channels: int = introduced(3)  # 3 for colour, 1 for grey
    allow_empty_caption: bool = introduced(False)  # False rejects a sample without a caption, counted and named
    # share of samples, chosen by key, whose caption is read as empty; 1 reads none
    drop_captions: float = introduced(0.0)
    # share of rejected samples (no caption, no picture or a bad one) above which a run stops
    max_bad_fraction: Knob[float] = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.drop_captions <= 1:
            raise UserError(f"reading.drop_captions is {self.drop_captions}; it is a share and lies in [0, 1]")
        if self.crop not in CROPS:
            raise UserError(f"reading.crop is {self.crop!r}; write {', '.join(CROPS)}: --set reading.crop=center")


def caption_of(sample: Sample, reading: Reading) -> str:
    """The sample's `txt` member without surrounding space; RejectedSampleError where it is missing or empty and may not
    be; empty where the reading drops it.
    """
    if _place("caption", sample.key) < reading.drop_captions:
        return ""
    try:
        caption = sample.members.get("txt", b"").decode().strip()
    except UnicodeDecodeError as error:
        raise RejectedSampleError(
            f"{sample.key}: its txt member is not UTF-8 ({error.reason} at byte {error.start})"
        ) from error
    if not caption and not reading.allow_empty_caption:
        raise RejectedSampleError(
            f"{sample.key}: no caption (its txt member is {'empty' if 'txt' in sample.members else 'missing'})"
        )
    return caption


def _place(what: str, key: str) -> float:
    """A number in [0, 1) that depends on its use and the key only."""
    return int.from_bytes(hashlib.sha256(f"{what}/{key}".encode()).digest()[:6], "big") / 2**48


def picture_of(sample: Sample, reading: Reading) -> np.ndarray:
    """The sample's picture as uint8, shape (height, width, channels); RejectedSampleError where it has none or it does
    not decode.
    """
    return framed_picture_of(sample, reading)[0]


def framed_picture_of(sample: Sample, reading: Reading) -> tuple[np.ndarray, Frame | None]:
    """The sample's picture, as `picture_of` gives it, and what it was cut from; None where it was not."""
    name = next((m for m in PICTURE_MEMBERS if m in sample.members), None)
    if name is None:
        raise RejectedSampleError(f"{sample.key}: no picture (expected one of {', '.join(PICTURE_MEMBERS)})")
    try:
        with Image.open(io.BytesIO(sample.members[name])) as opened:
            picture, frame = _square(opened, sample.key, reading)
    except DAMAGE as error:
        # Pillow's own words for a file of no known kind are the address of a buffer.
        reason = "not a picture of a known kind" if isinstance(error, UnidentifiedImageError) else error
        raise RejectedSampleError(f"{sample.key}: its {name} member does not decode ({reason})") from error
    return _array(picture, reading.channels), frame


def _square(opened: Image.Image, key: str, reading: Reading) -> tuple[Image.Image, Frame | None]:
    if reading.crop == "none":
        return square_on_white(opened, reading.picture_size), None
    place = 0.5 if reading.crop == "center" else _place(f"crop/{reading.crop_seed}", key)
    return cropped(opened, reading.picture_size, place)


def _array(picture: Image.Image, channels: int) -> np.ndarray:
    """Pixels with the channels last, also where there is only one."""
    return np.asarray(picture) if channels == 3 else np.asarray(picture.convert("L"))[..., None]


def pack_row(row: Row) -> Sample:
    """Store a row as a sample: the caption as txt, every array as npy."""
    members = {"txt": str(row["caption"]).encode()}
    for name, array in row.items():
        if name not in ("key", "caption"):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            members[f"{name}.npy"] = buffer.getvalue()
    return Sample(key=row["key"], members=members)


def unpack_row(sample: Sample) -> Row:
    """Read what `pack_row` wrote; pickled arrays are refused by numpy's ValueError."""
    row: Row = {"key": sample.key, "caption": sample.members["txt"].decode()}
    for name, data in sample.members.items():
        if name.endswith(".npy"):
            row[_FORMER.get(name, name).removesuffix(".npy")] = np.load(io.BytesIO(data), allow_pickle=False)
    return row
