"""What tests share: a real S3 server, started once per session on free ports."""

import os
import secrets
from collections.abc import Iterator

import pytest

from raystill.data.server import ObjectStoreServer
from raystill.data.store import create_bucket


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStoreServer]:
    """A running server; most tests want `s3` or `bucket`."""
    with ObjectStoreServer.start(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: ObjectStoreServer) -> Iterator[dict[str, str]]:
    """Points the session's AWS_* variables, and those of processes that tests start, at the server; gives them."""
    environment = s3_server.environment()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        # A test without a key must not wait for a cloud's metadata service to answer.
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", os.devnull)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str], request: pytest.FixtureRequest) -> str:
    """The uri of a bucket of the test's own."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    uri = f"s3://{letters[:50].strip('-')}-{secrets.token_hex(3)}"
    create_bucket(uri)
    return uri
