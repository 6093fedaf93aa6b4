"""Shards from people's folders and from emoji sets, and the sample that ships with the project."""

import importlib.util
import io
import json
import os
import runpy
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from raystill.config.errors import UserError
from raystill.data.build import EmojiBuild, FolderBuild, Source, build_shards, emoji_source, folder_source
from raystill.data.emoji import LABELS_PACKAGE, SETS, plain_caption
from raystill.data.packages import fetch_package, unpack_package
from raystill.data.pictures import read_picture
from raystill.data.shards import Sample, list_shards, unpack
from raystill.data.store import open_store

ROOT = Path(__file__).parents[3]


def _picture(path: Path, size: tuple[int, int] = (12, 8), colour: object = "red", mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)  # type: ignore[arg-type]
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures: two with captions beside them, one in metadata.jsonl."""
    here = tmp_path / "pictures"
    _picture(here / "cat.v2.png").with_suffix(".txt").write_text("  a red\n cat ")
    _picture(here / "more/dog.JPEG", colour="blue").with_suffix(".txt").write_text("ein Bär", encoding="utf-8")
    _picture(here / "more/owl.webp", (30, 60), "green")
    (here / "metadata.jsonl").write_text(json.dumps({"file_name": "more/owl.webp", "text": "an owl"}) + "\n\n")
    return here


def _by_key(source: Source) -> dict[str, Sample]:
    return {sample.key: sample for sample in source.samples}


def test_a_folder_keeps_its_files_and_gets_its_captions(folder: Path) -> None:
    samples = _by_key(folder_source(FolderBuild(folder=folder)))
    captions = {key: sample.members["txt"].decode() for key, sample in samples.items()}
    assert captions == {"cat_v2": "a red cat", "more/dog": "ein Bär", "more/owl": "an owl"}
    assert samples["cat_v2"].members["png"] == (folder / "cat.v2.png").read_bytes()
    assert samples["more/dog"].members["jpg"] == (folder / "more/dog.JPEG").read_bytes()


def test_a_size_scales_the_shorter_side_down_and_never_up(folder: Path) -> None:
    samples = _by_key(folder_source(FolderBuild(folder=folder, size=10)))
    sizes = {key: read_picture(sample.members["webp"], key).size for key, sample in samples.items()}
    assert sizes == {"cat_v2": (12, 8), "more/dog": (12, 8), "more/owl": (10, 20)}


def test_the_seed_fixes_the_order(tmp_path: Path) -> None:
    for index in range(20):
        _picture(tmp_path / f"{index:02d}.png").with_suffix(".txt").write_text("x")
    orders = [[s.key for s in folder_source(FolderBuild(folder=tmp_path, seed=seed)).samples] for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) != orders[0]


def test_missing_captions_stop_the_build_unless_allowed(folder: Path) -> None:
    (folder / "cat.v2.txt").write_text("  \n")
    with pytest.raises(
        UserError, match=r"1 of 3 pictures have no caption, such as .*cat\.v2\.png.*--allow-empty-caption"
    ):
        folder_source(FolderBuild(folder=folder))
    assert _by_key(folder_source(FolderBuild(folder=folder, allow_empty_caption=True)))["cat_v2"].members["txt"] == b""


def test_captions_that_cannot_be_read_name_file_and_line(folder: Path) -> None:
    (folder / "cat.v2.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"cat\.v2\.txt: is not UTF-8 .* at byte 3"):
        folder_source(FolderBuild(folder=folder))
    for line in ("not json", '{"file_name": "a.png"}', "[1]", '{"file_name": "gone.png", "text": "x"}'):
        (folder / "metadata.jsonl").write_text(f"\n{line}\n")
        with pytest.raises(UserError, match=r"metadata\.jsonl line 2: "):
            folder_source(FolderBuild(folder=folder))


def test_folders_without_pictures_and_pictures_with_one_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        folder_source(FolderBuild(folder=tmp_path / "missing"))
    with pytest.raises(UserError, match=r"no pictures in .*\.png, \.jpg"):
        folder_source(FolderBuild(folder=tmp_path))
    for name in ("a.png", "a.jpg"):
        _picture(tmp_path / name).with_suffix(".txt").write_text("x")
    with pytest.raises(UserError, match=r"a\.jpg and .*a\.png would have the same key 'a'"):
        folder_source(FolderBuild(folder=tmp_path))


def test_pictures_that_do_not_decode_are_skipped_and_named_up_to_a_limit(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "cat.v2.png").read_bytes()
    damage = {
        "cut.png": whole[: len(whole) // 2],
        "text.jpg": b"<html>",
        "empty.webp": b"",
        "bits.png": whole[:20] + b"#" * 40,
    }
    for name, content in damage.items():
        (folder / name).write_bytes(content)
        (folder / name).with_suffix(".txt").write_text("x")
    store = open_store(str(tmp_path / "out"))
    summary = build_shards(folder_source(FolderBuild(folder=folder, max_bad_fraction=0.6)), store)
    assert "4 of 7 pictures skipped" in summary
    for name in damage:
        assert f"skipped {folder / name}: does not decode" in summary
    assert len(list(unpack(store.read("000000.tar"), "000000.tar"))) == 3
    with pytest.raises(UserError, match=r"(?s)of 7 pictures do not decode, more than 5%.*--max-bad-fraction"):
        list(folder_source(FolderBuild(folder=folder)).samples)


def test_transparent_grey_and_turned_pictures_become_upright_rgb_on_white() -> None:
    def through(picture: Image.Image, **options: object) -> Image.Image:
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", **options)
        return read_picture(buffer.getvalue(), "a")

    assert through(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert through(Image.new("RGBA", (2, 2), (0, 0, 0, 128))).getpixel((0, 0)) == (127, 127, 127)
    assert through(Image.new("L", (2, 2), 7)).getpixel((0, 0)) == (7, 7, 7)
    turned = Image.Exif()
    turned[0x0112] = 6
    assert through(Image.new("RGB", (2, 3)), exif=turned).size == (3, 2)


@pytest.mark.parametrize(
    ("label", "caption"),
    [
        ("waving hand: medium-light skin tone", "waving hand medium light skin tone"),
        ("flag: Côte d’Ivoire", "flag cote divoire"),
        ("flag: U.S. Virgin Islands", "flag us virgin islands"),
        ("flag: Trinidad & Tobago", "flag trinidad and tobago"),
        ("keycap: #", "keycap hash"),
        ("Japanese “free of charge” button", "japanese free of charge button"),
    ],
)
def test_captions_keep_letters_digits_and_spaces(label: str, caption: str) -> None:
    assert plain_caption(label) == caption


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    """Two emoji packages and the labels, laid out as the registry's are."""
    labels = tmp_path / "labels"
    (labels / "en").mkdir(parents=True)
    heart = {"label": "red heart", "hexcode": "2764", "group": 0, "subgroup": 1}
    wave = {"label": "waving hand", "hexcode": "1F44B", "group": 0, "subgroup": 1}
    wave["skins"] = [{"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF"}]
    (labels / "en/data.json").write_text(json.dumps([heart, wave]))
    groups = {"groups": [{"key": "symbols", "order": 0}], "subgroups": [{"key": "heart", "order": 1}]}
    (labels / "en/messages.json").write_text(json.dumps(groups))
    for name in ("2764-fe0f", "1f44b", "1f44b-1f3ff", "e000"):
        _picture(tmp_path / f"noto/img/google/64/{name}.png", (64, 64), (255, 0, 0, 255), "RGBA")
    _picture(tmp_path / "fluent3d/assets/2764-fe0f.webp", (128, 128), (0, 0, 0, 0), "RGBA")
    return {
        LABELS_PACKAGE: labels,
        SETS["noto"].package: tmp_path / "noto",
        SETS["fluent-3d"].package: tmp_path / "fluent3d",
        SETS["fluent-flat"].package: tmp_path / "flat",
    }


def test_one_set_of_emoji_is_captioned_by_code_points(packages: dict[str, Path]) -> None:
    source = emoji_source(EmojiBuild(sets=["noto"], unpacked=packages))
    samples = _by_key(source)
    captions = {key: sample.members["txt"] for key, sample in samples.items()}
    assert captions == {
        "noto-2764-fe0f": b"red heart",
        "noto-1f44b": b"waving hand",
        "noto-1f44b-1f3ff": b"waving hand dark skin tone",
    }
    about = json.loads(samples["noto-2764-fe0f"].members["json"])
    assert about == {"category": "symbols", "subcategory": "heart", "codepoints": "2764"}
    assert "Apache-2.0" in source.attribution


def test_several_sets_name_their_style_and_share_one_size(packages: dict[str, Path]) -> None:
    source = emoji_source(EmojiBuild(sets=["noto", "fluent-3d"], unpacked=packages, size=32))
    samples = _by_key(source)
    assert source.total == len(samples) == 4
    assert samples["fluent-3d-2764-fe0f"].members["txt"] == b"red heart, fluent 3d style"
    assert samples["noto-2764-fe0f"].members["txt"] == b"red heart, noto style"
    picture = read_picture(samples["fluent-3d-2764-fe0f"].members["webp"], "a")
    assert picture.size == (32, 32)
    assert picture.getpixel((16, 16)) == (255, 255, 255)


def test_sets_named_by_words_are_matched_to_unicode_and_drawn_or_say_what_to_install(packages: dict[str, Path]) -> None:
    folder = packages[SETS["fluent-flat"].package] / "icons/flat"
    folder.mkdir(parents=True)
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" fill="#00f"/></svg>'
    for name in ("waving-hand-default", "waving-hand-dark", "paper-clip"):
        (folder / f"{name}.svg").write_text(svg)
    source = emoji_source(EmojiBuild(sets=["fluent-flat"], unpacked=packages))
    assert source.total == 3
    if importlib.util.find_spec("resvg_py") is None:
        with pytest.raises(UserError, match="pip install resvg-py"):
            next(source.samples)
        return
    samples = _by_key(source)
    assert samples["fluent-flat-waving-hand-dark"].members["txt"] == b"waving hand dark skin tone"
    assert samples["fluent-flat-waving-hand-default"].members["txt"] == b"waving hand"
    assert samples["fluent-flat-paper-clip"].members["txt"] == b"paper clip"
    assert read_picture(samples["fluent-flat-paper-clip"].members["webp"], "a").getpixel((9, 9)) == (0, 0, 255)


def test_unknown_sets_and_packages_without_pictures_are_named(packages: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\['apple'\] are not known; expected some of: noto, twemoji"):
        emoji_source(EmojiBuild(sets=["noto", "apple"], unpacked=packages))
    with pytest.raises(
        UserError, match=r"no fluent-flat pictures at .*expected an unpacked npm package fluentui-emoji@"
    ):
        emoji_source(EmojiBuild(sets=["fluent-flat"], unpacked=packages))
    with pytest.raises(UserError, match="no emoji labels in"):
        emoji_source(EmojiBuild(sets=["noto"], unpacked={**packages, LABELS_PACKAGE: tmp_path}))


def test_packages_are_fetched_once_and_a_missing_npm_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm is not on PATH and has to fetch a@1"):
        fetch_package("a@1", tmp_path)
    (tmp_path / "@scope+a@1").mkdir()
    (tmp_path / "@scope+a@1/package.json").write_text("{}")
    assert fetch_package("@scope/a@1", tmp_path) == tmp_path / "@scope+a@1"


def test_packages_that_would_leave_their_folder_or_are_damaged_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../evil"), io.BytesIO(b""))
    with pytest.raises(UserError, match=r"a\.tgz: cannot be unpacked"):
        unpack_package(archive, tmp_path / "out")
    archive.write_bytes(archive.read_bytes()[:20])
    with pytest.raises(UserError, match=r"a\.tgz: cannot be unpacked"):
        unpack_package(archive, tmp_path / "out")


def test_the_shipped_sample_is_whole() -> None:
    store = open_store("shipped://samples/noto")
    samples = [sample for entry in list_shards(store) for sample in unpack(store.read(entry.key), entry.key)]
    assert len(samples) == 3786
    captions = [sample.members["txt"].decode() for sample in samples]
    assert len(set(captions)) == 3786
    assert {"red heart", "flag japan", "grinning face", "waving hand medium skin tone"} <= set(captions)
    assert all(caption == plain_caption(caption) for caption in captions)
    assert all(set(sample.members) == {"webp", "txt", "json"} for sample in samples)
    assert {read_picture(sample.members["webp"], sample.key).size for sample in samples[::50]} == {(64, 64)}
    assert {"LICENSE", "ATTRIBUTION.md"} <= {entry.key for entry in store.list()}


Typed = Callable[..., tuple[int, str, str]]
JOB = str(ROOT / "jobs/shards.py")


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """The job's exit status, and what it printed and complained, without a process of its own."""

    def ended(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [JOB, *arguments])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(JOB, run_name="__main__")
        return (int(end.value.code or 0), *capsys.readouterr())

    return ended


def test_the_job_builds_onto_s3_and_says_what_is_wrong_without_a_traceback(
    folder: Path, bucket: str, typed: Typed
) -> None:
    line = [sys.executable, JOB, "folder", str(folder), "--out", f"{bucket}/pictures", "--per-shard", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert f"2 shards, 0.0 MB, in {bucket}/pictures; 0 of 3 pictures skipped" in done.stdout
    assert [entry.key for entry in open_store(f"{bucket}/pictures").list()] == ["000000.tar", "000001.tar"]
    status, _, complained = typed("folder", str(folder), "--out", f"{bucket}/pictures")
    assert status == 2
    assert "already holds 2 shards" in complained
    assert "Traceback" not in complained


def test_the_jobs_help_names_both_kinds_and_their_options(typed: Typed) -> None:
    assert "folder PICTURES --out s3://bucket/prefix" in " ".join(typed("--help")[1].split())
    assert "fluent-3d" in typed("emoji", "--help")[1]
