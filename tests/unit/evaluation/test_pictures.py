import numpy as np
import pytest
from jaxtyping import UInt8
from PIL import ImageFont

from raystill.config.errors import UserError
from raystill.evaluation.pictures import FIRST, GAP, LAST, PLOT, curves, grid, wrap

RED, BLUE = (200, 10, 20), (0, 30, 250)


def flat(colour: tuple[int, int, int], height: int = 8, width: int = 12) -> UInt8[np.ndarray, "h w 3"]:
    return np.full((height, width, 3), colour, np.uint8)


def test_without_labels_the_size_is_that_of_the_pictures_and_gaps() -> None:
    drawn = grid([[flat(RED), flat(BLUE), flat(RED)], [flat(BLUE)] * 3], ["", ""], ["", "", ""], scale=3)
    assert drawn.size == (3 * 36 + 4 * GAP, 2 * 24 + 3 * GAP)
    assert drawn.mode == "RGB"


def test_pictures_stand_in_their_row_and_column() -> None:
    drawn = grid([[flat(RED), flat(BLUE)], [flat(BLUE), flat(RED)]], ["", ""], ["", ""], scale=2)
    first, second = GAP + 8, GAP + 24 + GAP + 12
    below = GAP + 16 + GAP + 8
    assert [drawn.getpixel(at) for at in [(first, 10), (second, 10)]] == [RED, BLUE]
    assert [drawn.getpixel(at) for at in [(first, below), (second, below)]] == [BLUE, RED]
    assert drawn.getpixel((GAP + 24 + GAP // 2, 10)) == (255, 255, 255)


def test_pixels_are_enlarged_blocky_unless_smooth() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    picture[0, 0] = 255
    blocky = np.asarray(grid([[picture]], [""], [""], scale=4))[GAP:-GAP, GAP:-GAP]
    assert np.array_equal(blocky, picture.repeat(4, axis=0).repeat(4, axis=1))
    smooth = np.asarray(grid([[picture]], [""], [""], scale=4, smooth=True))[GAP:-GAP, GAP:-GAP]
    assert len(np.unique(smooth)) > 2


def test_grey_pictures_are_drawn() -> None:
    drawn = grid([[np.full((4, 4, 1), 77, np.uint8)]], [""], [""], scale=1)
    assert drawn.getpixel((GAP + 1, GAP + 1)) == (77, 77, 77)


def test_labels_are_drawn_beside_and_above() -> None:
    plain = grid([[flat(RED, 32, 32)]], [""], [""], scale=2)
    labelled = grid([[flat(RED, 32, 32)]], ["grinning cat"], ["4 steps"], scale=2, label_width=100)
    assert labelled.width == plain.width + 100 + GAP
    assert labelled.height > plain.height
    pixels = np.asarray(labelled)
    top = labelled.height - plain.height
    assert pixels[GAP:top, GAP + 100 + GAP :].min() < 100  # ink above the picture
    assert pixels[top:, : GAP + 100].min() < 100  # ink beside it
    assert pixels[:top, : GAP + 100].min() == 255  # none in the corner


def test_a_long_caption_makes_its_row_taller_and_not_wider() -> None:
    caption = "a woman in a steamy room with a towel around her head, light skin tone, noto style " * 2
    short = grid([[flat(RED)], [flat(BLUE)]], ["cat", "dog"], [""], scale=4, label_width=80)
    tall = grid([[flat(RED)], [flat(BLUE)]], [caption, "dog"], [""], scale=4, label_width=80)
    assert tall.width == short.width
    assert tall.height > short.height + 100
    assert tall.getpixel((tall.width - GAP - 2, tall.height - GAP - 2)) == BLUE  # the next row comes after all of it


def test_wrapping_keeps_words_and_width() -> None:
    font = ImageFont.load_default(13)
    text = "grinning face with unbelievablylongcompoundadjectives and sweat"
    lines = wrap(text, 70, font).split("\n")
    assert max(font.getlength(line) for line in lines) <= 70
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert lines[0] == "grinning"
    assert wrap("", 70, font) == ""


@pytest.mark.parametrize(
    ("rows", "row_labels", "column_labels", "scale", "message"),
    [
        ([], [], ["a"], 1, "0 rows"),
        ([[flat(RED)]], ["a", "b"], ["a"], 1, "1 rows and 2 row labels"),
        ([[flat(RED)], [flat(RED)] * 2], ["a", "b"], ["a"], 1, r"rows of \[1, 2\] pictures"),
        ([[flat(RED), flat(RED, 9)]], ["a"], ["a", "b"], 1, "one shape"),
        ([[np.zeros((3, 3, 4), np.uint8)]], ["a"], ["a"], 1, "1 or 3"),
        ([[flat(RED)]], ["a"], ["a"], 0, "scale 0"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_refused(
    rows: list[list[UInt8[np.ndarray, "_ _ _"]]],
    row_labels: list[str],
    column_labels: list[str],
    scale: int,
    message: str,
) -> None:
    with pytest.raises(UserError, match=message):
        grid(rows, row_labels, column_labels, scale)


def test_curves_are_drawn_in_their_colours_from_zero_upwards() -> None:
    x = [i / 10 for i in range(11)]
    drawn = curves(x, [[1.0] * 11, [2.0] * 11, x], ["step 1", "step 2", "step 300"], title="a law")
    pixels = np.asarray(drawn)
    assert drawn.width > PLOT[0]
    assert drawn.height > PLOT[1]

    def rows(colour: tuple[int, int, int]) -> list[int]:
        left = pixels[:, : PLOT[0] + 5 * GAP + 24]  # without the labels
        found: list[int] = np.flatnonzero((left == np.array(colour, np.uint8)).all(axis=2).any(axis=1)).tolist()
        return found

    flat_rows, rising = rows(FIRST), rows(LAST)
    assert len(flat_rows) <= 3  # one level
    assert rising[-1] - rising[0] == pytest.approx(PLOT[1] / 2 / 1.05, abs=12)  # from 0 to 1, where the top is 2.1
    assert abs(rising[0] - flat_rows[0]) < 12  # it ends at the height of the first one


@pytest.mark.parametrize(
    ("x", "lines", "labels", "message"),
    [
        ([0.0], [[1.0]], ["a"], "1 places"),
        ([0.0, 1.0], [], [], "two places or more"),
        ([0.0, 1.0], [[1.0, 2.0], [1.0]], ["a", "b"], r"curves of \[2, 1\] values"),
        ([0.0, 1.0], [[1.0, 2.0]], ["a", "b"], "2 labels"),
        ([0.0, 1.0], [[1.0, -2.0]], ["a"], "below 0"),
        ([0.0, 1.0], [[1.0, float("nan")]], ["a"], "not finite"),
        ([1.0, 1.0], [[1.0, 2.0]], ["a"], "increasing x"),
    ],
)
def test_curves_that_cannot_be_drawn_are_refused(
    x: list[float], lines: list[list[float]], labels: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        curves(x, lines, labels, title="a law")
