"""What tests share: a real S3 server and a real pipeline of random weights, each made once per session."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from raystill.data.server import ObjectStoreServer
from raystill.data.store import create_bucket

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # else whatever tests start would not hear Ctrl-C, either

# No example is judged by its time: a busy machine would fail it. The same examples every time where CI is set.
settings.register_profile(
    "raystill", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("raystill")


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
        yield environment


@pytest.fixture
def bucket(s3: dict[str, str], request: pytest.FixtureRequest) -> str:
    """The uri of a bucket of the test's own."""
    letters = "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())
    uri = f"s3://{letters[:50].strip('-')}-{secrets.token_hex(3)}"
    create_bucket(uri)
    return uri


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Stable Diffusion pipeline of random weights for 16 x 16 pictures, in diffusers' format."""
    import torch  # most tests need neither torch nor diffusers

    from raystill.models.fresh import (
        AutoencoderShape,
        DenoiserShape,
        load_tokenizer,
        save_autoencoder,
        save_pipeline,
        tokens_of,
    )
    from raystill.models.text import train_tokenizer

    directory = tmp_path_factory.mktemp("pipeline") / "tiny"
    autoencoder = AutoencoderShape(widths=(8, 16), groups=8)
    shape = DenoiserShape(
        widths=(16, 32), heads=2, groups=8, text_width=16, text_layers=1, text_heads=2, text_length=8, vocabulary=600
    )
    train_tokenizer(
        ["red heart", "cat face", "blue car"] * 2, shape.vocabulary, shape.text_length, directory / "tokenizer"
    )
    tokens = tokens_of(load_tokenizer(directory / "tokenizer"))
    with torch.random.fork_rng():
        torch.manual_seed(11)
        save_autoencoder(autoencoder, autoencoder.build().state_dict(), 0.7, directory / "vae")
        unet = shape.unet(latent_channels=4, latent_size=8)
        save_pipeline(unet, shape.text_encoder(tokens), "v_prediction", directory)
    return directory
