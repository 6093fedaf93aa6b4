"""Fixtures: a base in miniature, and adapters of it that a test registers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from mlflow import MlflowClient
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from raystill.config.digest import digest
from raystill.flow.starts import StartLaw
from raystill.models import artifact
from raystill.models.card import AdapterCard, Base, model_card
from raystill.models.sampling import ODE, Sampling
from raystill.models.scheduler import RayFlowScheduler
from raystill.tracking.runs import open_experiment

TIMES = {"1": (999,), "2": (999, 499), "4": (999, 749, 499, 249)}
Export = Callable[..., Path]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole Stable Diffusion pipeline in miniature, with a many-step scheduler, as published ones have."""
    home = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (home / "vocab.json").write_text(json.dumps(vocabulary))
    (home / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(home / "vocab.json"), str(home / "merges.txt"), model_max_length=12)
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=12, bos_token_id=52, eos_token_id=53, pad_token_id=53,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=2,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), latent_channels=4, sample_size=16, norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, unet=unet, text_encoder=CLIPTextModel(config), tokenizer=tokenizer, scheduler=PNDMScheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(home / "pipeline")
    return home / "pipeline"


@pytest.fixture
def export(base: Path, tmp_path: Path) -> Export:
    """Write an adapter of the base with a given distance at its default number of steps."""

    def write(
        distance: float | None = 17.0, evaluation: str = "e1", seed: int = 0, sampling: Sampling = ODE, steps: int = 4
    ) -> Path:
        torch.manual_seed(seed)
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
        config = LoraConfig(r=4, lora_alpha=16, target_modules=["to_q", "to_v", "conv1"], init_lora_weights=False)
        unet.add_adapter(config)
        recipe = {"kind": "Run", "seed": seed}
        figures: dict[str, Any] = {"digest": evaluation, "features": "tiny-net", "frechet": {str(steps): distance}}
        card = AdapterCard(
            base=Base(id=str(base)), method="rayflow", steps=(1, 2, 4), default_steps=steps,
            timesteps=TIMES, guidance_scale=1.0, recipe=recipe, recipe_digest=digest(recipe), commit="f00d",
            start=StartLaw().to_json(),
            evaluation={} if distance is None else figures,
        )  # fmt: skip
        scheduler: Any = DDIMScheduler(timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True)
        if sampling != ODE:
            scheduler = RayFlowScheduler.from_config(scheduler.config, sigma=0.3, jump=sampling.jump, eta=sampling.eta)
        directory = tmp_path / f"export-{seed}-{evaluation}-{distance}-{steps}"
        readme = model_card(card, scheduler=type(scheduler).__name__, licence="Apache-2.0", here=str(directory))
        state = get_peft_model_state_dict(unet)
        settings = json.loads(scheduler.to_json_string())
        artifact.write(directory, card, state, settings, Image.new("RGB", (4, 6)), readme, lora_config=config.to_dict())
        return directory

    return write


@pytest.fixture
def run_id(uri: str, client: MlflowClient, experiment: str) -> str:
    """A run to register from."""
    return str(client.create_run(open_experiment(uri, experiment)).info.run_id)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("RAYSTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
