"""A pipeline as it is draws what diffusers' own pipeline draws."""

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from raystill.models.pipeline import load_pipeline
from raystill.models.stock_pipeline import StockPipeline


def test_it_draws_as_plain_diffusers_with_the_stock_sampler(tiny_pipeline: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(tiny_pipeline, dtype=torch.float32, safety_checker=None)
    plain.scheduler = DDIMScheduler.from_config(plain.scheduler.config, timestep_spacing="trailing", clip_sample=False)
    plain.set_progress_bar_config(disable=True)
    drawn = StockPipeline(load_pipeline(tiny_pipeline), 3.0).draw(["red heart", "cat face"], 5, seed=4).numpy()
    for own in (0, 1):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(4))[own : own + 1]
        caption = ["red heart", "cat face"][own]
        found = plain(caption, num_inference_steps=5, guidance_scale=3.0, latents=noise, output_type="np").images[0]
        np.testing.assert_allclose(drawn[own] / 255, found, atol=1.5 / 255)
    assert not np.array_equal(
        drawn[0], StockPipeline(load_pipeline(tiny_pipeline), 1.0).draw(["red heart"], 5, seed=4)[0].numpy()
    )
