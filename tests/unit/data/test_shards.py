"""Shards: packed and read back, readable by webdataset itself, and every kind of damage named."""

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

from raystill.data.shards import Sample, ShardError, list_shards, pack, unpack, write_shards
from raystill.data.store import Store, open_store

SAMPLES = [
    Sample(key="animals/cat", members={"txt": b"a cat", "webp": b"\0" * 700}),
    Sample(key="dog", members={"json": b"{}", "latent.npy": b"", "txt": b"a dog"}),
    Sample(key="x" * 300, members={"txt": "ein Bär".encode()}),
]


def _tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def test_samples_come_back_as_they_were_packed() -> None:
    assert list(unpack(pack(SAMPLES), "a.tar")) == SAMPLES
    assert list(unpack(pack([]), "empty.tar")) == []


def test_the_same_samples_give_the_same_bytes() -> None:
    assert pack(SAMPLES) == pack(iter(SAMPLES))
    with tarfile.open(fileobj=io.BytesIO(pack(SAMPLES))) as tar:
        assert {(info.mtime, info.uname) for info in tar} == {(0, "root")}


def test_webdataset_reads_our_shards_and_we_read_plain_tars() -> None:
    expanded = tar_file_expander([{"url": "a.tar", "stream": io.BytesIO(pack(SAMPLES))}])
    theirs = [{k: v for k, v in sample.items() if k != "__url__"} for sample in group_by_keys(expanded)]
    assert theirs == [{"__key__": sample.key, **sample.members} for sample in SAMPLES]
    plain = _tar(("./a/1.JPG", b"jpg"), ("./a/1.txt", b"one"))
    assert list(unpack(plain, "plain.tar")) == [Sample(key="a/1", members={"jpg": b"jpg", "txt": b"one"})]


def test_folders_in_a_tar_are_passed_over() -> None:
    assert list(unpack(_tar(("a", b""), kind=tarfile.DIRTYPE), "a.tar")) == []


@pytest.mark.parametrize(
    "name", ["../a.txt", "/etc/a.txt", "a/../../b.txt", "a\\b.txt", ".txt", "v1.0/a.txt", "a//b.txt"]
)
def test_a_member_that_would_leave_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ShardError, match=r"bad\.tar: member name .* is refused"):
        list(unpack(_tar((name, b"1")), "bad.tar"))


def test_members_that_are_links_repeated_apart_or_without_extension_are_refused() -> None:
    for link in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with pytest.raises(ShardError, match=r"bad\.tar: member 'a\.txt' is a link or a special file"):
            list(unpack(_tar(("a.txt", b""), kind=link), "bad.tar"))
    with pytest.raises(ShardError, match=r"member 'a\.txt' appears twice"):
        list(unpack(_tar(("a.txt", b"1"), ("a.txt", b"2")), "bad.tar"))
    with pytest.raises(ShardError, match=r"the members of 'a' do not stand together"):
        list(unpack(_tar(("a.txt", b"1"), ("b.txt", b"2"), ("a.png", b"3")), "bad.tar"))
    with pytest.raises(ShardError, match=r"member 'LICENSE' has no extension"):
        list(unpack(_tar(("LICENSE", b"1")), "bad.tar"))


def test_every_cut_of_a_shard_is_noticed() -> None:
    whole = pack(SAMPLES[:2])
    content = len(whole.rstrip(b"\0"))
    for length in range(0, content, 256):
        with pytest.raises(ShardError, match=r"cut\.tar: (cut off|damaged|the header)"):
            list(unpack(whole[:length], "cut.tar"))


def test_the_message_names_the_member_where_a_shard_breaks() -> None:
    whole = pack(SAMPLES[:2])
    with pytest.raises(ShardError, match=r"cut off inside member 'animals/cat\.webp', which ends at byte 2236 of 1800"):
        list(unpack(whole[:1800], "a.tar"))
    damaged = bytearray(whole)
    header = whole.index(b"dog.json")
    damaged[header + 3] ^= 1
    # Plain tarfile, and so webdataset, takes this for the end of the archive and drops the rest without a word.
    with tarfile.open(fileobj=io.BytesIO(damaged)) as tar:
        assert tar.getnames() == ["animals/cat.txt", "animals/cat.webp"]
    with pytest.raises(ShardError, match=rf"header after member 'animals/cat\.webp', at byte {header}, is damaged"):
        list(unpack(bytes(damaged), "a.tar"))
    with pytest.raises(ShardError, match="Expected an uncompressed tar"):
        list(unpack(b"\x1f\x8b" * 600, "a.tar"))
    with pytest.raises(ShardError, match=r"a\.tar\.gz: its gzip compression is damaged"):
        list(unpack(b"\x1f\x8b" * 600, "a.tar.gz"))
    assert list(unpack(gzip.compress(whole), "a.tar.gz")) == list(unpack(whole, "a.tar"))


def test_samples_that_could_not_be_read_back_are_not_packed() -> None:
    with pytest.raises(ShardError, match="two samples have the key 'a'"):
        pack([Sample(key="a", members={"txt": b"1"}), Sample(key="a", members={"txt": b"2"})])
    with pytest.raises(ShardError, match="has no members"):
        pack([Sample(key="a", members={})])
    for key, extension in (("../a", "txt"), ("a.b", "txt"), ("a", "TXT"), ("a", ""), ("", "txt")):
        with pytest.raises(ShardError):
            pack([Sample(key=key, members={extension: b"1"})])


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return open_store(str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")).join("set")


def test_shards_are_written_in_order_and_listed(store: Store) -> None:
    samples = [Sample(key=f"{index}", members={"txt": b"x"}) for index in range(5)]
    written = list(write_shards(store, iter(samples), per_shard=2, prefix="train/"))
    assert [entry.key for entry in written] == ["train/000000.tar", "train/000001.tar", "train/000002.tar"]
    store.write("train/README.md", b"not a shard")
    assert list_shards(store) == written
    assert [s for entry in written for s in unpack(store.read(entry.key), entry.key)] == samples


def test_new_shards_are_not_mixed_with_old_ones(store: Store) -> None:
    assert len(list(write_shards(store, SAMPLES))) == 1
    with pytest.raises(ShardError, match="already holds 1 shards"):
        list(write_shards(store, SAMPLES))
    with pytest.raises(ShardError, match="per_shard is 0"):
        list(write_shards(store, SAMPLES, per_shard=0))


def test_a_store_without_shards_says_what_it_holds(store: Store) -> None:
    with pytest.raises(ShardError, match=r"it is empty; expected files named \*\.tar.*raystill shards"):
        list_shards(store)
    for index in range(7):
        store.write(f"{index}.png", b"")
    with pytest.raises(ShardError, match=r"holds 7 other files \(0\.png, .*4\.png, \.\.\.\)"):
        list_shards(store)
