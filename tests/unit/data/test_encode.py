"""The stages before a pipeline's own training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from raystill.data.encode import LatentTransform, PictureTransform
from raystill.data.pictures import encode_webp
from raystill.data.records import Reading, Row, pack_row
from raystill.data.shards import Sample
from raystill.models.fresh import tokenize
from raystill.models.pipeline import load_pipeline


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """More rows than one batch of 64, of two captions."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (67, 16, 16, 3), dtype=np.uint8)
    return [{"key": f"s{i}", "caption": ("red heart", "cat")[i % 2], "image": p} for i, p in enumerate(pictures)]


def test_latents_and_tokens_are_the_pipelines_own(tiny_pipeline: Path, rows: list[Row]) -> None:
    transform = LatentTransform(tiny_pipeline / "vae", tiny_pipeline / "tokenizer")
    derived = transform.compute([transform.read(pack_row(row)) for row in rows])
    assert [(row["key"], row["caption"]) for row in derived] == [(row["key"], row["caption"]) for row in rows]
    pipeline = load_pipeline(tiny_pipeline)
    pictures = torch.from_numpy(np.stack([row["image"] for row in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = np.stack([row["latent"] for row in derived])
    assert latents.shape == (67, 4, 8, 8)
    np.testing.assert_allclose(latents, pipeline.encode(pictures).numpy(), rtol=1e-4, atol=1e-5)
    tokens, tokenizer = np.stack([row["tokens"] for row in derived]), pipeline.encoder.tokenizer
    np.testing.assert_array_equal(tokens, tokenize(tokenizer, [row["caption"] for row in rows]).numpy())
    assert tokens.shape == (67, 8)


def test_pictures_of_any_shape_become_latents_of_one(tiny_pipeline: Path) -> None:
    """Wide, tall and square ones, in one shard."""
    pictures, latents = (
        PictureTransform(Reading(picture_size=16)),
        LatentTransform(tiny_pipeline / "vae", tiny_pipeline / "tokenizer"),
    )
    samples = [
        Sample(key=f"s{i}", members={"webp": encode_webp(Image.new("RGB", size, "red")), "txt": b"red heart"})
        for i, size in enumerate([(20, 12), (12, 20), (16, 16)])
    ]
    rows = pictures.compute([pictures.read(sample) for sample in samples])
    found = [row["latent"] for row in latents.compute([latents.read(pack_row(row)) for row in rows])]
    assert {latent.shape for latent in found} == {(4, 8, 8)}
    expected = load_pipeline(tiny_pipeline).encode(
        torch.from_numpy(np.stack([row["image"] for row in rows])).permute(0, 3, 1, 2).float() / 127.5 - 1
    )
    np.testing.assert_allclose(np.stack(found), expected.numpy(), rtol=1e-4, atol=1e-5)
    wide, tall, square = found
    assert np.abs(wide - tall).max() > 1e-3  # white above and below is not white at the sides
    assert np.abs(wide - square).max() > 1e-3
