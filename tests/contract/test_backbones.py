"""One suite over every family of pipelines, on tiny ones of the real classes: what raystill draws is what the stock
pipeline draws.
"""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TINY, tiny
from torch import Tensor

from raystill.config.digest import digest
from raystill.flow.predictions import Latent
from raystill.flow.solvers import ddim
from raystill.models.backbones.table import BACKBONES
from raystill.models.card import AdapterCard, Base
from raystill.models.conditioning import expanded, part, rows_of
from raystill.models.denoiser import GuidedDenoiser
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.stock import stock_sampler
from raystill.models.stock_pipeline import StockPipeline

CAPTIONS = ["a red heart", "blue cat"]
START = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=TINY)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def place(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a family's tiny pipeline."""
    directory = tmp_path_factory.mktemp("backbones") / name
    stock(name).save_pretrained(directory)
    return directory


@cache
def stock(name: str) -> Any:
    """The family's pipeline of diffusers, made for each test anew where one changes it."""
    return tiny(name)


@pytest.fixture(scope="module")
def pipeline(place: Path) -> Pipeline:
    return load_pipeline(place)


def start(pipeline: Pipeline) -> Latent:
    """Starts of the captions' pictures."""
    return START[:, : pipeline.latent_shape[0]]


def drawn_by_diffusers(pipeline: Any, start: Latent, steps: int, guidance: float) -> Tensor:
    """Latents of the stock pipeline, by the stock sampler of its schedule."""
    kind = type(pipeline).__name__
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "latent"}
    if kind.startswith("PixArt"):
        call["use_resolution_binning"] = False
    if kind == "StableDiffusion3Pipeline":
        call["sigmas"] = [1 - i / steps for i in range(steps)]
    else:
        pipeline.scheduler = stock_sampler(pipeline.scheduler)
    latents: Tensor = pipeline(list(CAPTIONS), latents=start.clone(), height=32, width=32, **call).images
    return latents


@torch.no_grad()
def drawn_by_us(pipeline: Pipeline, start: Latent, steps: int, guidance: float) -> Latent:
    """Latents of raystill's DDIM."""
    condition, schedule = pipeline.condition(CAPTIONS), pipeline.schedule
    condition |= expanded(pipeline.backbone.framed((32, 32), (0, 0), 32), 2)
    guided = GuidedDenoiser(pipeline.denoiser, pipeline.empty(), guidance)
    return ddim(lambda x, t: guided(x, t, condition), schedule, start, schedule.sampling_times(steps))


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (2, 3.0), (4, 1.0), (4, 3.0)])
def test_latents_are_those_of_the_stock_pipeline(name: str, pipeline: Pipeline, steps: int, guidance: float) -> None:
    expected = drawn_by_diffusers(stock(name), start(pipeline), steps, guidance)
    found = drawn_by_us(pipeline, start(pipeline), steps, guidance)
    assert float(expected.std()) > 1e-2
    assert float((found - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_a_row_alone_is_the_row_in_a_batch(pipeline: Pipeline) -> None:
    whole, t = pipeline.condition(CAPTIONS), torch.tensor([0.9, 0.4], dtype=torch.float64)
    value = pipeline.denoiser(start(pipeline), t, whole).value
    for i, caption in enumerate(CAPTIONS):
        one, alone = slice(i, i + 1), pipeline.condition([caption])
        assert {k: v.shape for k, v in alone.items()} == {k: v.shape for k, v in part(whole, one).items()}
        for key, tensor in alone.items():
            torch.testing.assert_close(tensor, whole[key][one], rtol=1e-4, atol=1e-5)
        own = pipeline.denoiser(start(pipeline)[one], t[one], alone).value
        torch.testing.assert_close(own, value[one], rtol=1e-4, atol=1e-4)


def test_captions_that_are_cut_are_counted(pipeline: Pipeline) -> None:
    tokenizer, limit = pipeline.backbone.limit(pipeline.encoder)
    fits = "a " * (limit // 2 - 2)
    assert len(tokenizer(fits).input_ids) <= limit
    assert pipeline.backbone.cut(pipeline.encoder, ["", fits, "cat " * limit, "a red heart " * limit]) == 2


@torch.no_grad()
def test_pictures_of_latents_are_the_autoencoder_s_own_round_trip(name: str, pipeline: Pipeline) -> None:
    vae, picture = stock(name).vae, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = vae.decode(vae.encode(picture).latent_dist.mean).sample
    latents = pipeline.encode(picture)
    assert latents.shape == (2, pipeline.latent_shape[0], 16, 16)
    torch.testing.assert_close(pipeline.backbone.pictures(pipeline.vae, latents), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_pictures_are_those_of_the_stock_pipeline(name: str, pipeline: Pipeline) -> None:
    one = stock(name)
    latents = start(pipeline)
    settings = one.vae.config
    expected = one.vae.decode(latents / settings.scaling_factor + (getattr(settings, "shift_factor", None) or 0)).sample
    found = pipeline.decode(latents)
    wanted = one.image_processor.postprocess(expected, output_type="pt").permute(0, 2, 3, 1) * 255
    assert float((found.float() - wanted).abs().max()) < 0.51


@torch.no_grad()
def test_feature_maps_lie_where_the_picture_does(pipeline: Pipeline) -> None:
    """A change in one corner of a latent changes a first block's features there most."""
    name, width = next(iter(pipeline.backbone.features.items()))
    maps: list[Tensor] = []
    x = start(pipeline)
    hook = pipeline.network.get_submodule(name).register_forward_hook(
        lambda _module, _inputs, output: maps.append(pipeline.backbone.feature_map(output, x))
    )
    try:
        for change in (0.0, 1.0):
            moved = x.clone()
            moved[:, :, :4, 12:] += change
            t = torch.full((2,), 0.5, dtype=torch.float64)
            pipeline.denoiser(moved, t, pipeline.condition(CAPTIONS))
    finally:
        hook.remove()
    assert maps[0].shape[:2] == (2, width)
    gained = (maps[1] - maps[0]).square().sum(dim=(0, 1))
    rows, columns = gained.shape
    assert divmod(int(gained.argmax()), columns)[0] < rows / 2
    assert divmod(int(gained.argmax()), columns)[1] >= columns / 2


def test_what_is_told_to_all_is_not_stored(pipeline: Pipeline) -> None:
    condition, fixed = pipeline.condition(CAPTIONS), pipeline.backbone.fixed
    assert not set(condition) & set(fixed)
    assert rows_of(condition) == 2
    assert all(tensor.shape[0] == 1 for tensor in fixed.values())
    assert rows_of(pipeline.empty()) == 1


def test_the_card_knows_the_part_and_the_loader_of_every_family() -> None:
    for pipeline, family in BACKBONES.items():
        card = AdapterCard(
            base=Base(id="x"), method="x", steps=(1,), default_steps=1, timesteps={"1": (999,)}, guidance_scale=1.0,
            recipe={}, recipe_digest=digest({}), commit="0", pipeline=pipeline,
        )  # fmt: skip
        assert (card.part, card.loads_lora) == (family.network, family.loads_lora)


@torch.no_grad()
def test_a_pipeline_as_it_is_draws_pictures(pipeline: Pipeline) -> None:
    drawing = StockPipeline(pipeline, 1.0)
    if pipeline.latent_shape[1] > 16:  # 256 pixels of random weights take long
        return
    assert drawing.draw(CAPTIONS, 2).shape == (2, 32, 32, 3)


def test_every_family_is_here() -> None:
    assert {type(tiny(name)).__name__ for name in TINY} == set(BACKBONES)
