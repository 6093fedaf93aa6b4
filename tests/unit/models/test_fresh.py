"""Fresh networks of the sizes that their settings name, written and read back as diffusers' own."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel, UniPCMultistepScheduler
from safetensors.torch import load_file

from raystill.flow.predictions import Kind
from raystill.models.fresh import (
    AutoencoderShape,
    DenoiserShape,
    Tokens,
    fresh_scheduler,
    load_autoencoder,
    load_tokenizer,
    save_autoencoder,
    save_pipeline,
    stable_diffusion_scheduler,
    tokens_of,
)


@pytest.mark.parametrize(("widths", "factor"), [((8,), 1), ((8, 16), 2), ((8, 16, 24), 4)])
def test_an_autoencoder_halves_once_per_width_after_the_first(widths: tuple[int, ...], factor: int) -> None:
    shape = AutoencoderShape(widths=widths, groups=4, latent_channels=3)
    assert shape.factor == factor
    with torch.no_grad():
        vae = shape.build().eval()
        latent = vae.encode(torch.zeros(2, 3, 8, 12)).latent_dist.mean
        assert latent.shape == (2, 3, 8 // factor, 12 // factor)
        assert vae.decode(latent).sample.shape == (2, 3, 8, 12)


@pytest.mark.parametrize("widths", [(8, 16), (8, 16, 24)])
def test_a_unet_attends_to_text_below_the_first_resolution(widths: tuple[int, ...]) -> None:
    unet = DenoiserShape(widths=widths, groups=4, heads=2, text_width=6).unet(5, 8)
    assert isinstance(unet, UNet2DConditionModel)
    assert (unet.config.sample_size, unet.config.in_channels) == (8, 5)
    attending = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
    assert not any(name.startswith("down_blocks.0") for name in attending)
    assert any(name.startswith("down_blocks.1") for name in attending)
    with torch.no_grad():
        assert unet(torch.zeros(2, 5, 8, 12), 3, torch.zeros(2, 4, 6)).sample.shape == (2, 5, 8, 12)


def test_a_text_encoder_has_a_feature_per_token() -> None:
    shape = DenoiserShape(text_width=8, text_heads=2, text_layers=1, text_length=5)
    text = shape.text_encoder(Tokens(vocabulary=11, start=1, end=10, empty=(1, 10, 10, 10, 10))).eval()
    with torch.no_grad():
        assert text(torch.tensor([[1, 4, 10, 10, 10]]))[0].shape == (1, 5, 8)


def test_the_schedule_is_stable_diffusions() -> None:
    scheduler = stable_diffusion_scheduler("epsilon")
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=0)
    assert float(scheduler.final_alpha_cumprod) == 1
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]


def test_an_autoencoder_is_kept_in_half_precision_with_its_scale(tmp_path: Path) -> None:
    shape = AutoencoderShape(widths=(8, 16), groups=4)
    torch.manual_seed(0)
    trained = {f"vae.{name}": tensor.clone() for name, tensor in shape.build().state_dict().items()}
    returned = save_autoencoder(shape, trained, 0.7, tmp_path)
    read = load_autoencoder(tmp_path)
    assert {t.dtype for t in load_file(tmp_path / "diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    for name, tensor in read.state_dict().items():
        assert torch.equal(tensor, trained[f"vae.{name}"].half().float())
        assert torch.equal(returned.state_dict()[name], tensor)
    assert read.config.scaling_factor == 0.7
    assert not read.training


def test_a_written_pipeline_is_read_by_stock_diffusers(pipeline_directory: Path) -> None:
    # The dtype must be said: without it diffusers widens the stored halves of its own parts, transformers does not.
    stock = StableDiffusionPipeline.from_pretrained(pipeline_directory, dtype=torch.float32)
    assert isinstance(stock.scheduler, DDIMScheduler)
    assert stock.scheduler.config.prediction_type == "v_prediction"
    assert stock.vae.config.scaling_factor == 0.5
    stock.set_progress_bar_config(disable=True)
    picture = stock("red heart", num_inference_steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    assert picture.images[0].size == (16, 16)


def test_what_a_text_encoder_must_know_of_its_tokenizer(pipeline_directory: Path) -> None:
    tokenizer = load_tokenizer(pipeline_directory / "tokenizer")
    tokens = tokens_of(tokenizer)
    assert tokens.vocabulary == len(tokenizer) == max(tokenizer.get_vocab().values()) + 1
    assert tokens.empty == (tokens.start, *[tokens.end] * 5)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_fresh_diffusion_pipeline_has_stable_diffusions_scheduler(kind: Kind) -> None:
    assert dict(fresh_scheduler(kind).config) == dict(stable_diffusion_scheduler(kind).config)


def test_a_written_flow_pipeline_is_sampled_by_stock_diffusers(pipeline_directory: Path, tmp_path: Path) -> None:
    for part in ("vae", "tokenizer"):
        shutil.copytree(pipeline_directory / part, tmp_path / part)
    made = StableDiffusionPipeline.from_pretrained(pipeline_directory, dtype=torch.float32)
    save_pipeline(made.unet, made.text_encoder, "flow_prediction", tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert isinstance(stock.scheduler, UniPCMultistepScheduler)
    stock.set_progress_bar_config(disable=True)
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = stock("red heart", num_inference_steps=1, guidance_scale=1.0, latents=start, output_type="latent").images
    with torch.no_grad():
        condition, _ = stock.encode_prompt(["red heart"], "cpu", 1, do_classifier_free_guidance=False)
        velocity = stock.unet(start, torch.tensor([999]), condition).sample  # stock rounds its timesteps down
    torch.testing.assert_close(found, start - velocity, rtol=1e-4, atol=1e-4)
