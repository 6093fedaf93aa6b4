"""Drawing of labelled grids of pictures and of curves, for people to look at beside the figures."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from raystill.config.errors import UserError

Picture = UInt8[np.ndarray, "h w c"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PAPER = (30, 30, 30), (255, 255, 255)
LARGE = 256  # pixels of a side from which on pictures are not enlarged
GAP = 6  # pixels between pictures
FIRST, LAST, RULE = (170, 205, 235), (160, 20, 60), (225, 225, 225)  # colours: first and last curve, grid lines
PLOT = (420, 220)  # pixels: width and height of the area of curves


def grid(
    rows: Sequence[Sequence[Picture]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    scale: int = 2,
    *,
    smooth: bool = False,
    font_size: int = 13,
    label_width: int = 150,
) -> Image.Image:
    """Draw pictures of one shape (0 to 255, grey or RGB), one row per caption and one column per sampler.

    `scale` enlarges small pictures whole-number times, blocky or `smooth` (Lanczos); row labels wrap at `label_width`
    pixels, column labels at the pictures' width. Raises UserError where counts or shapes do not agree."""
    height, width = _check(rows, row_labels, column_labels, scale)
    scale = scale if max(height, width) < LARGE else 1
    font = ImageFont.load_default(font_size)
    cell_w, cell_h = width * scale, height * scale
    sides = [wrap(label, label_width, font) for label in row_labels]
    heads = [wrap(label, cell_w, font) for label in column_labels]
    left = label_width + GAP if any(row_labels) else 0
    top = max(_text_height(head, font) for head in heads) + GAP if any(column_labels) else 0
    heights = [max(cell_h, _text_height(side, font)) for side in sides]
    total_w = GAP + left + len(heads) * (cell_w + GAP)
    canvas = Image.new("RGB", (total_w, GAP + top + sum(heights) + GAP * len(rows)), PAPER)
    draw = ImageDraw.Draw(canvas)
    for column, head in enumerate(heads):
        x = GAP + left + column * (cell_w + GAP) + cell_w // 2
        draw.multiline_text((x, GAP), head, fill=INK, font=font, anchor="ma", align="center")
    y = GAP + top
    for row, side, row_height in zip(rows, sides, heights, strict=True):
        draw.multiline_text((GAP, y + row_height // 2), side, fill=INK, font=font, anchor="lm")
        for column, picture in enumerate(row):
            at = (GAP + left + column * (cell_w + GAP), y + (row_height - cell_h) // 2)
            canvas.paste(_enlarged(picture, scale, smooth), at)
        y += row_height + GAP
    return canvas


def rendered(figure: Any) -> Image.Image:
    """A matplotlib Figure, whose class takes a fifth of a second to import, as an RGB picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def curves(
    x: Sequence[float], lines: Sequence[Sequence[float]], labels: Sequence[str], title: str, font_size: int = 12
) -> Image.Image:
    """Draw curves over a common x axis, on a y axis from 0, coloured in order from FIRST to LAST, labels at the right.

    Raises UserError where a curve has not one finite value, 0 or more, per x."""
    _check_curves(x, lines, labels)
    font = ImageFont.load_default(font_size)
    top_value = max(1e-9, *(max(line) for line in lines)) * 1.05
    left, top, (width, height) = 5 * GAP + font_size * 2, 3 * GAP + font_size, PLOT
    side = max(int(font.getlength(label)) for label in labels) + 2 * GAP
    tall = max(height, (font_size + 4) * len(labels))
    canvas = Image.new("RGB", (left + width + side + GAP, top + tall + font_size + 3 * GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    draw.text((left, GAP), title, fill=INK, font=font)
    for i in range(5):
        y, across = top + height - height * i / 4, left + width * i / 4
        draw.line([(left, y), (left + width, y)], fill=RULE)
        draw.text((left - GAP, y), f"{top_value * i / 4:.2g}", fill=INK, font=font, anchor="rm")
        at = min(x) + (max(x) - min(x)) * i / 4
        draw.text((across, top + height + GAP), f"{at:.2g}", fill=INK, font=font, anchor="ma")
    span = max(x) - min(x)
    for i, (line, label) in enumerate(zip(lines, labels, strict=True)):
        points = [
            (left + width * (a - min(x)) / span, top + height * (1 - b / top_value))
            for a, b in zip(x, line, strict=True)
        ]
        draw.line(points, fill=_shade(i, len(lines)), width=2)
        draw.text((left + width + GAP, top + i * (font_size + 4)), label, fill=_shade(i, len(lines)), font=font)
    return canvas


def _shade(i: int, count: int) -> tuple[int, int, int]:
    """Colour of curve i of `count` between FIRST and LAST; a single curve has LAST."""
    part = i / (count - 1) if count > 1 else 1.0
    red, green, blue = (round(a + part * (b - a)) for a, b in zip(FIRST, LAST, strict=True))
    return red, green, blue


def _check_curves(x: Sequence[float], lines: Sequence[Sequence[float]], labels: Sequence[str]) -> None:
    """Refuse, with UserError, curves that cannot be drawn."""
    if len(x) < 2 or not lines or len(lines) != len(labels) or any(len(line) != len(x) for line in lines):
        raise UserError(
            f"found {len(x)} places x, curves of {[len(line) for line in lines]} values and {len(labels)} labels; "
            "expected two places or more, a value of every curve at each, and one label per curve"
        )
    if max(x) <= min(x) or not all(np.isfinite(line).all() and min(line) >= 0 for line in lines):
        raise UserError("curves are drawn over increasing x and from 0 upwards: found values below 0 or not finite")


def wrap(text: str, width: int, font: Font) -> str:
    """Break text into lines of at most `width` pixels: between words, or inside one that is too long by itself."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        pieces = _broken(word, width, font)
        lines = (lines if lines[-1] else lines[:-1]) + pieces
    return "\n".join(lines)


def _broken(word: str, width: int, font: Font) -> list[str]:
    pieces = [""]
    for letter in word:
        if pieces[-1] and font.getlength(pieces[-1] + letter) > width:
            pieces.append("")
        pieces[-1] += letter
    return pieces


def _text_height(text: str, font: Font) -> int:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, font=font)
    return int(np.ceil(box[3]))


def _enlarged(picture: Picture, scale: int, smooth: bool) -> Image.Image:
    height, width, channels = picture.shape
    image = Image.fromarray(picture[:, :, 0] if channels == 1 else picture)
    how = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    return image.convert("RGB").resize((width * scale, height * scale), how)


def _check(
    rows: Sequence[Sequence[Picture]], row_labels: Sequence[str], column_labels: Sequence[str], scale: int
) -> tuple[int, int]:
    """Give the pictures' height and width; UserError where the grid cannot be drawn."""
    lengths = sorted({len(row) for row in rows})
    if len(rows) == 0 or len(rows) != len(row_labels):
        raise UserError(f"found {len(rows)} rows and {len(row_labels)} row labels, expected rows with one label each")
    if lengths != [len(column_labels)] or lengths == [0]:
        raise UserError(
            f"found rows of {lengths} pictures and {len(column_labels)} column labels, expected one picture per label "
            "in every row"
        )
    shapes = sorted({picture.shape for row in rows for picture in row})
    if len(shapes) != 1 or shapes[0][2] not in (1, 3):
        raise UserError(f"found pictures of shapes {shapes}, expected one shape (height, width, 1 or 3)")
    if scale < 1:
        raise UserError(f"found scale {scale}, expected a whole number of 1 or more")
    return shapes[0][0], shapes[0][1]
