"""The embedded store: started and stopped with the run, filled once, and gone from the environment afterwards."""

import os
import socket
from pathlib import Path

import boto3.session
import pytest

from raystill.config.errors import UserError
from raystill.data.ports import GRPC_OFFSET
from raystill.data.server import ObjectStoreServer, running
from raystill.data.shards import Sample, pack
from raystill.data.store import create_bucket, open_store
from raystill.launch.services import object_store, upload_sample


def test_a_store_for_the_time_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "000000.tar").write_bytes(pack([Sample(key="a", members={"txt": b"cat"})]))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")  # each of these would win over ours
    monkeypatch.setenv("AWS_PROFILE", "elsewhere")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "stale")
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", "http://127.0.0.1:1")
    before = dict(os.environ)
    with object_store("embedded", tmp_path):
        assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
        assert upload_sample(str(tmp_path / "sample"), "s3://first-run/shards") == 1
        assert upload_sample(str(tmp_path / "sample"), "s3://first-run/shards") == 0  # it is there
        assert [e.key for e in open_store("s3://first-run/shards").list()] == ["000000.tar"]
        assert {n for n in os.environ if n.startswith(("AWS_", "MLFLOW_S3_"))} == {
            "AWS_ENDPOINT_URL", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE", "AWS_REGION", "AWS_DEFAULT_REGION"
        }  # fmt: skip
    assert dict(os.environ) == before


def test_a_second_shell_shares_the_store_of_the_first(tmp_path: Path) -> None:
    with ObjectStoreServer.start(tmp_path / "s3") as first:
        for port in (None, first.port):
            with object_store("embedded", tmp_path, port):
                assert os.environ["AWS_ENDPOINT_URL"] == first.endpoint
                create_bucket("s3://shared")
        assert running(tmp_path / "s3") is not None  # it was not stopped


def shard(word: bytes) -> bytes:
    return pack([Sample(key="a", members={"txt": word})])


def test_a_sample_does_not_go_among_or_over_other_shards(tmp_path: Path) -> None:
    sample, target = tmp_path / "sample", tmp_path / "target"
    for folder, name, word in ((sample, "000000.tar", b"cat"), (target, "000000.tar", b"dog")):
        folder.mkdir()
        (folder / name).write_bytes(shard(word))
    with pytest.raises(UserError, match=r"1 shards that are not .*000000\.tar .*--set sample=null"):
        upload_sample(str(sample), str(target))  # of the same size, so that only the content tells
    assert (target / "000000.tar").read_bytes() == shard(b"dog")
    (target / "000000.tar").rename(target / "000001.tar")
    with pytest.raises(UserError, match=r"000001\.tar"):
        upload_sample(str(sample), str(target))
    assert [p.name for p in target.iterdir()] == ["000001.tar"]


def test_a_copy_whose_tag_is_of_another_kind_is_the_same_shard(s3: dict[str, str], bucket: str, tmp_path: Path) -> None:
    (tmp_path / "000000.tar").write_bytes(shard(b"cat"))
    client = boto3.session.Session().client("s3")
    name = bucket.removeprefix("s3://")
    upload = client.create_multipart_upload(Bucket=name, Key="000000.tar")["UploadId"]
    where = {"Bucket": name, "Key": "000000.tar", "UploadId": upload}
    part = client.upload_part(**where, PartNumber=1, Body=shard(b"cat"))
    client.complete_multipart_upload(**where, MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]})
    assert open_store(bucket).list()[0].etag.endswith("-1")
    assert upload_sample(str(tmp_path), bucket) == 0


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1] - GRPC_OFFSET  # a port whose twin is taken
        with pytest.raises(UserError, match=f"port {port}.*in use"), object_store("embedded", tmp_path, port):
            pass


def test_the_environment_is_left_alone_where_it_is_trusted(tmp_path: Path) -> None:
    before = dict(os.environ)
    with object_store("environment", tmp_path):
        assert dict(os.environ) == before
