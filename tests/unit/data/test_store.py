"""Stores over a real S3 server and real folders: the same operations, and errors that say what to do."""

import configparser
import errno
import json
import os
import pickle
from pathlib import Path

import boto3.session
import botocore.exceptions
import pytest

from raystill.config.errors import UserError
from raystill.data.local import translated
from raystill.data.s3 import translated as s3_translated
from raystill.data.server import ObjectStoreServer
from raystill.data.store import Store, StoreError, create_bucket, open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    uri = str(tmp_path) if request.param == "local" else request.getfixturevalue("bucket")
    return open_store(f"{uri}/data/set")


def test_what_is_written_is_listed_and_read_back(store: Store) -> None:
    written = store.write("b/two.tar", b"22")
    store.write("a.tar", b"1")
    assert [(entry.key, entry.size) for entry in store.list()] == [("a.tar", 1), ("b/two.tar", 2)]
    assert store.list("b/") == [written]
    assert store.read("b/two.tar") == b"22"
    assert store.join("b").read("two.tar") == b"22"
    assert store.join("b").uri == f"{store.uri}/b"


def test_an_etag_is_the_md5_of_the_content_in_both_kinds_of_store(store: Store) -> None:
    assert store.write("a", b"hello").etag == "5d41402abc4b2a76b9719d911017c592"
    assert store.list()[0].etag == "5d41402abc4b2a76b9719d911017c592"
    store.write("a", b"other")
    assert store.list()[0].etag == "795f3202b17cb6bc3d4b771d8c6c9eaf"


def test_a_new_store_is_empty_and_deleting_nothing_is_no_error(store: Store) -> None:
    assert store.list() == []
    store.delete("a")
    store.write("a", b"")
    assert store.exists("a")
    assert not store.exists("a.tar")
    assert store.read("a") == b""
    store.delete("a")
    assert not store.exists("a")


def test_folders_are_named_and_not_looked_into(store: Store) -> None:
    assert store.folders() == []
    for key in ("b/two.tar", "b/deep/one.tar", "a/1.tar", "c.tar"):
        store.write(key, b"1")
    assert store.folders() == ["a", "b"]
    assert store.join("b").folders() == ["deep"]


def test_a_prefix_that_begins_alike_is_another_store(store: Store) -> None:
    store.join("noto").write("a", b"1")
    store.join("noto2").write("a", b"1")
    assert [entry.key for entry in store.join("noto").list()] == ["a"]
    assert [entry.key for entry in store.list("noto")] == ["noto/a", "noto2/a"]


def test_a_store_goes_through_pickle(store: Store) -> None:
    store.write("a", b"1")
    assert pickle.loads(pickle.dumps(store)).read("a") == b"1"  # noqa: S301  # our own bytes


@pytest.mark.parametrize("key", ["", "/etc/passwd", "../a", "a/../../b", "a//b", "a\\b", "./a"])
def test_a_key_cannot_leave_the_store(store: Store, key: str) -> None:
    for operation in (store.read, store.exists, store.delete):
        with pytest.raises(StoreError, match="is refused"):
            operation(key)
    with pytest.raises(StoreError, match="is refused"):
        store.write(key, b"")


def test_a_missing_object_is_named(store: Store) -> None:
    create_bucket(store.uri)
    with pytest.raises(StoreError, match=r"nope\.tar: no such (object|file)"):
        store.read("nope.tar")


def test_large_bodies_come_back_whole(bucket: str) -> None:
    body = os.urandom(20 << 20)  # over s3transfer's 8 MiB, so that parts are fetched in parallel
    store = open_store(bucket)
    store.write("large", body)
    assert store.read("large") == body


def test_a_missing_bucket_says_how_to_create_it(s3: dict[str, str]) -> None:
    store = open_store("s3://nobody-made-this/prefix")
    for operation in (store.check, store.list, lambda: store.read("a"), lambda: store.write("a", b"")):
        with pytest.raises(StoreError, match=r"no bucket 'nobody-made-this'.*create_bucket\('s3://nobody-made-this'\)"):
            operation()


def test_creating_a_bucket_twice_is_no_error(bucket: str) -> None:
    create_bucket(bucket)
    create_bucket(f"{bucket}/some/prefix")
    open_store(bucket).check()


def test_a_wrong_secret_and_a_wrong_key_are_told_apart(
    s3: dict[str, str], bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket)
    store.write("a", b"1")
    found = configparser.RawConfigParser()
    found.read(s3["AWS_SHARED_CREDENTIALS_FILE"])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", found["default"]["aws_access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-the-secret")
    with pytest.raises(StoreError, match="secret key does not belong to this access key") as failure:
        store.check()
    assert "not-the-secret" not in str(failure.value)
    with pytest.raises(StoreError, match=r"refused \(403\).*AWS_ACCESS_KEY_ID"):
        store.read("a")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NOBODY")
    with pytest.raises(StoreError, match="does not know this access key"):
        store.check()


def test_no_credentials_and_no_server_are_told_apart(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(bucket)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match=r"no answer from http://127\.0\.0\.1:1 .*AWS_ENDPOINT_URL"):
        store.check()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:1")
    with pytest.raises(StoreError, match=r"Invalid endpoint"):
        store.check()
    monkeypatch.delenv("AWS_SHARED_CREDENTIALS_FILE")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    with pytest.raises(StoreError, match="no S3 credentials were found"):
        store.check()


def test_a_key_that_may_not_write_is_told_so(bucket: str) -> None:
    store = open_store(bucket)
    store.write("a", b"1")
    name = bucket.removeprefix("s3://")
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{name}/*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    boto3.session.Session().client("s3").put_bucket_policy(Bucket=name, Policy=policy)
    with pytest.raises(StoreError, match=r"AccessDenied.*may not do that here"):
        store.write("b", b"1")
    assert store.read("a") == b"1"


@pytest.mark.slow  # the server tries for 13 s itself
def test_one_changed_byte_on_the_servers_disk_is_an_error(
    bucket: str, s3_server: ObjectStoreServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    store = open_store(bucket)
    body = os.urandom(600_000)
    store.write("a.tar", body)
    volume = next(s3_server.directory.glob(f"objects/**/{bucket.removeprefix('s3://')}_*.dat"))
    with volume.open("r+b") as file:
        found = file.read().find(body[:600])
        assert found > 0
        file.seek(found + 100)
        file.write(bytes([body[100] ^ 1]))
    with pytest.raises(StoreError, match=r"a\.tar: .*(cut off or changed|failed inside.*is the stored copy damaged)"):
        store.read("a.tar")


@pytest.mark.parametrize(("operation", "says"), [("PutObject", "disk full"), ("GetObject", "stored copy damaged")])
def test_a_server_that_fails_inside_is_asked_about_its_disk_where_it_was_written_to(
    bucket: str, operation: str, says: str
) -> None:
    answer = botocore.exceptions.ClientError({"Error": {"Code": "500", "Message": ""}}, operation)
    with pytest.raises(StoreError, match=says), s3_translated(f"{bucket}/a"):
        raise answer


def test_uris_and_buckets_that_cannot_be_are_refused() -> None:
    for uri in ("", "gs://bucket/prefix", "https://host/a"):
        with pytest.raises(StoreError, match="expected s3://bucket/prefix or a local path"):
            open_store(uri)
    with pytest.raises(StoreError, match="is no bucket name"):
        open_store("s3://No_Such")
    assert issubclass(StoreError, UserError)


def test_a_failed_local_write_leaves_the_old_object_and_no_rest(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    store.write("a", b"old")
    (tmp_path / "b").mkdir()
    with pytest.raises(StoreError, match="a folder stands where a file was expected"):
        store.write("b", b"new")
    with pytest.raises(StoreError, match="a folder stands where a file was expected"):
        store.write("a/c", b"new")
    assert [entry.key for entry in store.list()] == ["a"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["a"]


def test_a_full_disk_is_named() -> None:
    full = Path("/dev/full")  # the system's device that has no room
    with pytest.raises(StoreError, match="disk or quota is full") as failure, translated(full):
        full.write_bytes(b"1")
    assert isinstance(failure.value.__cause__, OSError)
    assert failure.value.__cause__.errno == errno.ENOSPC


def test_a_missing_folder_is_found_by_check(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such folder"):
        open_store(f"{tmp_path}/missing").check()
    create_bucket(f"{tmp_path}/made")
    open_store(f"file://{tmp_path}/made").check()
