"""What anybody's samples become, and which of them cannot be used."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from raystill.config.errors import UserError
from raystill.data.pictures import encode_webp
from raystill.data.records import Reading, RejectedSampleError, caption_of, pack_row, picture_of, unpack_row
from raystill.data.shards import Sample


def sample(**members: bytes) -> Sample:
    return Sample(key="animals/cat", members=members)


def encoded(
    kind: str, colour: tuple[int, ...] = (200, 40, 90), size: tuple[int, int] = (6, 6), mode: str = "RGB"
) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()


def test_a_caption_is_stripped() -> None:
    assert caption_of(sample(txt="  ein Bär\n".encode()), Reading()) == "ein Bär"


@pytest.mark.parametrize(("members", "reason"), [({}, "missing"), ({"txt": b""}, "empty"), ({"txt": b" \n"}, "empty")])
def test_no_caption_is_refused_unless_it_may_be_empty(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(RejectedSampleError, match=f"^animals/cat: no caption .its txt member is {reason}"):
        caption_of(sample(**members), Reading())
    assert caption_of(sample(**members), Reading(allow_empty_caption=True)) == ""


def test_captions_are_dropped_by_key() -> None:
    samples = [Sample(key=f"k{i}", members={"txt": b"cat"}) for i in range(1000)]
    read = {share: [caption_of(s, Reading(drop_captions=share)) for s in samples] for share in (0.0, 0.25, 0.5, 1.0)}
    assert set(read[0.0]) == {"cat"}
    assert set(read[1.0]) == {""}
    for share in (0.25, 0.5):
        assert read[share].count("") == pytest.approx(1000 * share, abs=60)
    assert all(half == "" for quarter, half in zip(read[0.25], read[0.5], strict=True) if quarter == "")
    assert caption_of(Sample(key="bare", members={}), Reading(drop_captions=1.0)) == ""  # nothing was missing


def test_a_share_of_captions_outside_its_range_is_refused() -> None:
    with pytest.raises(UserError, match=r"drop_captions is 1\.5; it is a share"):
        Reading(drop_captions=1.5)


def test_a_caption_that_is_not_utf_8_is_refused_whatever_may_be_empty() -> None:
    with pytest.raises(RejectedSampleError, match=r"animals/cat: its txt member is not UTF-8 .* at byte 2"):
        caption_of(sample(txt=b"ab\xff"), Reading(allow_empty_caption=True))


@pytest.mark.parametrize("kind", ["png", "jpg", "jpeg", "webp"])
def test_a_picture_of_any_kind_is_read(kind: str) -> None:
    data = encoded({"jpg": "jpeg"}.get(kind, kind), size=(9, 9))
    picture = picture_of(sample(**{kind: data}), Reading(picture_size=5))
    assert picture.dtype == np.uint8
    assert picture.shape == (5, 5, 3)
    np.testing.assert_allclose(picture, np.broadcast_to([200, 40, 90], (5, 5, 3)), atol=4)


def test_a_wide_picture_is_laid_whole_on_white() -> None:
    picture = picture_of(sample(png=encoded("png", size=(6, 2))), Reading(picture_size=6))
    assert (picture[[0, 1, 4, 5]] == 255).all()
    assert (picture[2:4] == [200, 40, 90]).all()


@pytest.mark.parametrize("size", [(20, 12), (12, 20)], ids=["wide", "tall"])
def test_a_picture_of_any_shape_is_scaled_whole_and_centred(size: tuple[int, int]) -> None:
    """Each half of the picture has a colour of its own, along its longer side: nothing is cropped or turned."""
    whole = Image.new("RGB", size, (200, 40, 90))
    whole.paste((10, 150, 60), (0, 0, size[0] // 2, size[1]) if size[0] > size[1] else (0, 0, size[0], size[1] // 2))
    data = io.BytesIO()
    whole.save(data, "png")
    found = picture_of(sample(png=data.getvalue()), Reading(picture_size=16)).astype(int)
    assert found.shape == (16, 16, 3)
    lying = found if size[0] > size[1] else found.transpose(1, 0, 2)
    assert (lying[[0, 1, 14, 15]] > 250).all()  # 12 / 20 of 16 rows are the picture: 9.6, between 3.2 and 12.8
    np.testing.assert_allclose(lying[5:11, :6], np.broadcast_to([10, 150, 60], (6, 6, 3)), atol=6)
    np.testing.assert_allclose(lying[5:11, 10:], np.broadcast_to([200, 40, 90], (6, 6, 3)), atol=6)


def test_transparency_becomes_white() -> None:
    picture = picture_of(sample(png=encoded("png", (200, 40, 90, 0), mode="RGBA")), Reading(picture_size=6))
    assert (picture == 255).all()


def test_grey_has_one_channel() -> None:
    picture = picture_of(sample(png=encoded("png")), Reading(picture_size=6, channels=1))
    assert picture.shape == (6, 6, 1)
    # ITU-R 601 luma, as Pillow computes it.
    assert (picture == round(0.299 * 200 + 0.587 * 40 + 0.114 * 90)).all()


def test_a_grey_picture_in_colour_has_three_equal_channels() -> None:
    picture = picture_of(sample(png=encoded("png", (77,), mode="L")), Reading(picture_size=6))
    assert picture.shape == (6, 6, 3)
    assert (picture == 77).all()


def test_a_sample_without_picture_is_refused() -> None:
    with pytest.raises(RejectedSampleError, match=r"^animals/cat: no picture \(expected one of png, jpg"):
        picture_of(sample(txt=b"cat", gif=b"GIF89a"), Reading())


def damaged() -> dict[str, bytes]:
    whole = encode_webp(Image.effect_noise((32, 32), 90).convert("RGB"))
    noisy = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(noisy, "png")
    png = noisy.getvalue()
    jpeg = io.BytesIO()
    Image.effect_noise((32, 32), 90).save(jpeg, "jpeg")
    return {
        "text": b"this is no picture",
        "empty": b"",
        "half a webp": whole[: len(whole) // 2],
        "half a png": png[: len(png) // 2],
        "png header alone": png[:8],
        "png without pixels": png[:33],
        "jpeg cut in its header": jpeg.getvalue()[:21],
        "icns with half an entry": b"icns" + struct.pack(">I", 12) + b"ic07",
        "turned bytes": png[:60] + bytes(b ^ 0x5A for b in png[60:90]) + png[90:],
    }


@pytest.mark.parametrize("what", damaged().keys())
def test_an_undecodable_picture_is_refused(what: str) -> None:
    data = damaged()[what]
    with pytest.raises(RejectedSampleError, match=r"^animals/cat: its png member does not decode") as rejected:
        picture_of(sample(png=data), Reading())
    assert "0x" not in str(rejected.value)  # the reason is the same in every process


def test_a_row_survives_packing() -> None:
    row = {
        "key": "animals/cat",
        "caption": "ein Bär",
        "x_0": np.arange(12, dtype=np.float32).reshape(3, 4),
        "image": np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
    }
    found = unpack_row(pack_row(row))
    assert list(found) == ["key", "caption", "x_0", "image"]
    assert (found["key"], found["caption"]) == ("animals/cat", "ein Bär")
    for name in ("x_0", "image"):
        assert found[name].dtype == row[name].dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found[name], row[name])


def test_pickled_arrays_are_not_read() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        unpack_row(Sample(key="a", members={"txt": b"a", "x.npy": buffer.getvalue()}))
