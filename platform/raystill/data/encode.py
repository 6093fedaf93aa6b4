"""The two stages before the training of a pipeline: samples to decoded pictures, and pictures to latents and tokens."""

from pathlib import Path

import numpy as np
import torch

from raystill.data.records import Reading, Row, caption_of, picture_of, unpack_row
from raystill.data.shards import Sample
from raystill.models.fresh import load_autoencoder, load_tokenizer, tokenize


class PictureTransform:
    """The transform of source samples to decoded pictures of one size, so that no picture is decoded twice."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading

    def read(self, sample: Sample) -> Row:
        """Read a sample's caption and picture; RejectedSampleError where one is missing or does not decode."""
        caption = caption_of(sample, self.reading)
        return {"key": sample.key, "caption": caption, "image": picture_of(sample, self.reading)}

    def compute(self, rows: list[Row]) -> list[Row]:
        """Return the rows as they are, since `read` has decoded the pictures."""
        return rows


class LatentTransform:
    """The transform of decoded pictures to scaled latent means, and of captions to token ids."""

    def __init__(self, vae: Path, tokenizer: Path, device: str = "cpu") -> None:
        self.vae = load_autoencoder(vae).to(device)
        self.tokenizer = load_tokenizer(tokenizer)
        self.device = device

    def read(self, sample: Sample) -> Row:
        """Read the stored row of a decoded picture."""
        return unpack_row(sample)

    @torch.inference_mode()
    def compute(self, rows: list[Row]) -> list[Row]:
        """Return the latents and token ids of a shard's rows; pictures are encoded in batches of 64."""
        tokens = tokenize(self.tokenizer, [row["caption"] for row in rows]).numpy()
        latents = []
        for i in range(0, len(rows), 64):
            image = torch.from_numpy(np.stack([row["image"] for row in rows[i : i + 64]])).to(self.device)
            mean = self.vae.encode(image.permute(0, 3, 1, 2).float() / 127.5 - 1).latent_dist.mean
            latents.append((mean * self.vae.config.scaling_factor).cpu().numpy())
        kept = zip(rows, np.concatenate(latents), tokens, strict=True)
        return [{"key": r["key"], "caption": r["caption"], "latent": z, "tokens": ids} for r, z, ids in kept]
