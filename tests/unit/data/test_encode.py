"""The stages before a pipeline's own training."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raystill.data.encode import LatentTransform
from raystill.data.records import Row, pack_row
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
    tokens = np.stack([row["tokens"] for row in derived])
    np.testing.assert_array_equal(tokens, pipeline.tokens([row["caption"] for row in rows]).numpy())
    assert tokens.shape == (67, 8)
