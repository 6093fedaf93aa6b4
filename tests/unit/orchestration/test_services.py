"""The embedded store: started and stopped with the run, filled once, and gone from the environment afterwards."""

import os
import socket
from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.data.shards import Sample, pack
from raystill.data.store import open_store
from raystill.orchestration.services import object_store, upload_sample


def test_a_store_for_the_time_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "000000.tar").write_bytes(pack([Sample(key="a", members={"txt": b"cat"})]))
    before = os.environ.get("AWS_ENDPOINT_URL")
    with object_store("embedded", tmp_path):
        assert os.environ["AWS_ENDPOINT_URL"].startswith("http://127.0.0.1:")
        assert upload_sample(str(tmp_path / "sample"), "s3://first-run/shards") == 1
        assert upload_sample(str(tmp_path / "sample"), "s3://first-run/shards") == 0  # it is there
        assert [e.key for e in open_store("s3://first-run/shards").list()] == ["000000.tar"]
    assert os.environ.get("AWS_ENDPOINT_URL") == before


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port}.*in use"), object_store("embedded", tmp_path, port):
            pass


def test_the_environment_is_left_alone_where_it_is_trusted(tmp_path: Path) -> None:
    before = dict(os.environ)
    with object_store("environment", tmp_path):
        assert dict(os.environ) == before
