"""A whole Stable Diffusion pipeline of random weights, small enough for a test and large enough for every layer."""

from pathlib import Path

import pytest
import torch

from raystill.flow.predictions import Kind
from raystill.models.fresh import AutoencoderShape, DenoiserShape, save_autoencoder, save_pipeline, tokens_of
from raystill.models.text import train_tokenizer

AUTOENCODER = AutoencoderShape(widths=(8, 16), groups=4)
DENOISER = DenoiserShape(
    widths=(8, 16), groups=4, heads=2, text_width=12, text_layers=1, text_heads=2, text_length=6, vocabulary=600
)


def build(directory: Path, kind: Kind) -> Path:
    """Write a pipeline of 16 x 16 pictures and 8 x 8 latents."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["red heart", "cat face"] * 3, DENOISER.vocabulary, 6, directory / "tokenizer")
    save_autoencoder(
        AUTOENCODER, {f"vae.{n}": t for n, t in AUTOENCODER.build().state_dict().items()}, 0.5, directory / "vae"
    )
    save_pipeline(DENOISER.unet(4, 8), DENOISER.text_encoder(tokens_of(tokenizer)), kind, directory)
    return directory


@pytest.fixture(scope="session")
def pipeline_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that predicts v."""
    return build(tmp_path_factory.mktemp("pipelines") / "tiny", "v_prediction")
