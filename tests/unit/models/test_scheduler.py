"""RayFlowScheduler in diffusers' own pipelines: the picture of raystill's own sampler, for every path, jump and law."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    CogVideoXDDIMScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    HeunDiscreteScheduler,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    TCDScheduler,
)
from tests.given import prompted
from tests.sampling import sample_student
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.jumps import Jump, Walk, own_noise, own_seeds, stops
from raystill.flow.paths import PairedDiffusionPath, RayPath, interpolate, path_of, times_at
from raystill.flow.predictions import column, guided
from raystill.flow.starts import StartLaw
from raystill.models.conditioning import Condition
from raystill.models.denoiser import Denoiser
from raystill.models.sampling import Sampling
from raystill.models.scheduler import ENDED, RayFlowScheduler
from raystill.models.stock import kind_of, schedule_of

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TEACHERS: dict[str, dict[str, Any]] = {
    "epsilon": {**SD, "prediction_type": "epsilon"},
    "v": {**SD, "prediction_type": "v_prediction"},
    "zero-snr": {**SD, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "flow": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
}
CAPTIONS = ["red heart", "cat face", ""]
LAW = {"law": "channel_normal", "mean": [0.1, -0.2, 0.3, 0.0], "std": [0.5, 1.0, 2.0, 0.7]}


def draws(count: int = 3, seed: int = 7) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def stock(pipeline_directory: Path) -> StableDiffusionPipeline:
    """The tiny pipeline; its random network stands for one of any kind."""
    pipeline = StableDiffusionPipeline.from_pretrained(pipeline_directory, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def by_pipeline(stock: StableDiffusionPipeline, scheduler: Any, steps: int, **settings: Any) -> Tensor:
    pipeline = StableDiffusionPipeline(**{**stock.components, "scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"guidance_scale": 1.0, "latents": draws(), **settings}
    latents: Tensor = pipeline(CAPTIONS, num_inference_steps=steps, output_type="latent", **settings).images
    return latents


@torch.no_grad()
def by_raystill(stock: StableDiffusionPipeline, scheduler: RayFlowScheduler, steps: int, scale: float = 1.0) -> Tensor:
    config = scheduler.config
    condition, empty = (stock.encode_prompt(c, "cpu", 1, False)[0] for c in (CAPTIONS, ["", "", ""]))

    def network(x: Tensor, t: Tensor, c: Condition) -> Tensor:
        alone: Tensor = stock.unet(x, t, c["prompt"], return_dict=False)[0]
        return alone if scale == 1 else guided(stock.unet(x, t, empty, return_dict=False)[0], alone, scale)

    ray = {"sigma": config.sigma} if config.path == "RayPath" else {}
    ends = {"end": config.end} if config.path in ENDED else {}
    start = StartLaw.from_json(config.start or {"law": "normal"}).apply(draws())
    denoiser = Denoiser(network, schedule_of(scheduler), kind_of(scheduler))
    sampling = Sampling(jump=config.jump, eta=config.eta)
    return sample_student(
        denoiser, path_of({"kind": config.path, **ray, **ends}), start, prompted(condition), steps, sampling
    )


@pytest.mark.parametrize("teacher", ["epsilon", "v", "flow"])
@pytest.mark.parametrize("jump", ["ode", "anchored"])
@pytest.mark.parametrize("sigma", [0.0, 0.1, 1.0])
def test_a_pipeline_draws_what_raystill_draws(
    stock: StableDiffusionPipeline, teacher: str, jump: Jump, sigma: float
) -> None:
    scheduler = RayFlowScheduler(**TEACHERS[teacher], sigma=sigma, jump=jump)
    drawn = []
    for steps in (1, 2, 4, 8):
        drawn.append(by_pipeline(stock, scheduler, steps))
        torch.testing.assert_close(drawn[-1], by_raystill(stock, scheduler, steps), rtol=1e-3, atol=1e-3)
    assert float((drawn[0] - drawn[1]).abs().max()) > 1e-2


@pytest.mark.parametrize(
    "settings",
    [
        {"path": "PairedDiffusionPath", "jump": "anchored"},
        {"path": "StraightPath", "jump": "anchored"},
        {"path": "DiffusionPath"},
        {"sigma": 0.3, "jump": "anchored", "start": LAW},
        {"start": LAW},
        {"sigma": 0.3, "jump": "anchored", "eta": 0.5},
        {"eta": 1.0},
    ],
    ids=str,
)
def test_other_paths_laws_and_fresh_noise_agree_too(stock: StableDiffusionPipeline, settings: dict[str, Any]) -> None:
    # Without a generator fresh noise is the start's own, as raystill draws it.
    for teacher in ("zero-snr", "flow"):
        scheduler = RayFlowScheduler(**TEACHERS[teacher], **settings)
        found = by_pipeline(stock, scheduler, 4)
        torch.testing.assert_close(found, by_raystill(stock, scheduler, 4), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("jump", ["ode", "anchored"])
@pytest.mark.parametrize("teacher", ["v", "flow"])
def test_guidance_doubles_the_batch_and_changes_no_start(
    stock: StableDiffusionPipeline, teacher: str, jump: Jump
) -> None:
    scheduler = RayFlowScheduler(**TEACHERS[teacher], sigma=0.3, jump=jump)
    found = by_pipeline(stock, scheduler, 3, guidance_scale=2.5)
    torch.testing.assert_close(found, by_raystill(stock, scheduler, 3, 2.5), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_ode_jump_is_the_stock_ddim_scheduler(stock: StableDiffusionPipeline, kind: str, steps: int) -> None:
    plain = DDIMScheduler(**SD, prediction_type=kind, timestep_spacing="trailing", clip_sample=False, steps_offset=1)
    ours = RayFlowScheduler.from_config(plain.config, sigma=0.4)
    found, expected = (by_pipeline(stock, scheduler, steps) for scheduler in (ours, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    plain.set_timesteps(steps)
    assert ours.timesteps.tolist() == plain.timesteps.tolist()


def test_one_scheduler_draws_again_and_in_other_step_counts(stock: StableDiffusionPipeline) -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.3, jump="anchored")
    first, _, again = (by_pipeline(stock, scheduler, steps) for steps in (2, 5, 2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("steps", [1, 3, 50, 1000])
@pytest.mark.parametrize("teacher", TEACHERS)
def test_any_number_of_steps_can_be_prepared(teacher: str, steps: int) -> None:
    scheduler = RayFlowScheduler(**TEACHERS[teacher], sigma=0.3, jump="anchored")
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps == scheduler.num_inference_steps
    assert bool((scheduler.timesteps.diff() < 0).all())
    x_0, x = draws(2, 1).double(), draws(2, 2).double()
    for t in scheduler.timesteps if steps < 100 else []:
        asked = scheduler.scale_model_input(x, t)
        value = perfect(scheduler, asked, x_0, t)
        x = scheduler.step(value, t, x, return_dict=False)[0]
        assert bool(torch.isfinite(x).all())
    if steps < 100:
        torch.testing.assert_close(x, x_0)


def perfect(scheduler: RayFlowScheduler, asked: Tensor, x_0: Tensor, timestep: Tensor) -> Tensor:
    """What a network that knows x_0 answers about its own input at a timestep."""
    schedule, kind = schedule_of(scheduler), kind_of(scheduler)
    flows = kind == "flow_prediction"
    t = (timestep.double().view(1) + (0 if flows else 1)) / 1000
    s, n = float(schedule.signal(t)), float(schedule.noise(t))
    e = (asked - s * x_0) / n
    return {"epsilon": e, "v_prediction": s * e - n * x_0, "flow_prediction": e - x_0}[kind]


def test_it_reads_back_from_files_and_from_the_settings_of_other_schedulers(tmp_path: Path) -> None:
    scheduler = RayFlowScheduler(**TEACHERS["zero-snr"], sigma=0.3, jump="anchored", eta=0.5, start=LAW)
    scheduler.save_pretrained(tmp_path)
    read = RayFlowScheduler.from_pretrained(tmp_path)
    public = {k: v for k, v in json.loads(scheduler.to_json_string()).items() if not k.startswith("_")}
    assert {k: v for k, v in json.loads(read.to_json_string()).items() if not k.startswith("_")} == public
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "RayFlowScheduler"
    again = RayFlowScheduler.from_config(read.config, eta=0.0)
    assert (again.config.eta, again.config.sigma, again.config.rescale_betas_zero_snr) == (0.0, 0.3, True)
    ddpm = DDPMScheduler(**SD, num_train_timesteps=500, prediction_type="v_prediction")
    other = RayFlowScheduler.from_config(ddpm.config, sigma=0.2)
    assert len(other) == 500
    times = torch.linspace(0, 1, 77, dtype=torch.float64)
    assert torch.equal(schedule_of(other).angle(times), schedule_of(ddpm).angle(times))
    back = DDIMScheduler.from_config(scheduler.config)
    assert back.config.beta_schedule == "scaled_linear"


def test_times_that_move_with_a_pictures_size_are_refused() -> None:
    moving = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(UserError, match=r"use_dynamic_shifting.*give the shift of one size"):
        RayFlowScheduler.from_config(moving.config)


def test_flow_pipelines_add_noise_by_another_name() -> None:
    scheduler = RayFlowScheduler.from_config(FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    scheduler.set_timesteps(4)
    x_0, noise = (torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    t = scheduler.timesteps[1:2]
    torch.testing.assert_close(scheduler.scale_noise(x_0, t, noise), scheduler.add_noise(x_0, noise, t))


@pytest.mark.parametrize(
    "flow",
    [
        FlowMatchEulerDiscreteScheduler(shift=3.0),
        DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_flow_matching_settings_become_its_own(flow: Any) -> None:
    scheduler = RayFlowScheduler.from_config(flow.config, sigma=0.1)
    assert schedule_of(scheduler) == schedule_of(flow)
    assert kind_of(scheduler) == "flow_prediction"
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == pytest.approx([1000.0, 900.0, 750.0, 500.0])


def test_what_another_class_took_from_its_own_defaults_is_kept() -> None:
    times = torch.linspace(0, 1, 11, dtype=torch.float64)
    for plain in (LCMScheduler(), TCDScheduler(), HeunDiscreteScheduler()):
        found = RayFlowScheduler.from_config(plain.config, sigma=0.1)
        assert torch.equal(schedule_of(found).angle(times), schedule_of(plain).angle(times))


@pytest.mark.parametrize(
    ("plain", "message"),
    [
        (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas True"),
        (CogVideoXDDIMScheduler(), r"snr_shift_scale 3\.0"),
        (EulerDiscreteScheduler(timestep_type="continuous", prediction_type="v_prediction"), "timestep_type 'cont"),
    ],
    ids=lambda s: type(s).__name__,
)
def test_schedulers_that_are_not_understood_are_refused(plain: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        RayFlowScheduler.from_config(plain.config)


def test_times_of_a_caller_s_own_are_refused() -> None:
    flow = RayFlowScheduler(**TEACHERS["flow"])
    flow.set_timesteps(sigmas=[1.0, 0.5])
    assert flow.timesteps.tolist() == pytest.approx([1000.0, 750.0])
    with pytest.raises(UserError, match=r"sigmas \[1\.0, 0\.9\] .*num_inference_steps alone"):
        flow.set_timesteps(sigmas=[1.0, 0.9])
    with pytest.raises(UserError, match="num_inference_steps alone"):
        RayFlowScheduler(**TEACHERS["v"]).set_timesteps(sigmas=[1.0, 0.5])
    with pytest.raises(UserError, match=r"set_timesteps\(4\)"):
        flow.set_timesteps()


def eighth() -> AutoencoderKL:
    """An autoencoder of random weights and factor 8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4), norm_num_groups=4, layers_per_block=1, shift_factor=0.1,
    )  # fmt: skip


def sd3() -> StableDiffusion3Pipeline:
    """A tiny one that is given its embeddings."""
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=16, pooled_projection_dim=24, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    texts = dict.fromkeys(
        ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    )
    return StableDiffusion3Pipeline(transformer, FlowMatchEulerDiscreteScheduler(shift=3.0), eighth(), **texts)


def flux() -> FluxPipeline:
    """A tiny one that is given its embeddings."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=16, pooled_projection_dim=24, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    texts = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return FluxPipeline(FlowMatchEulerDiscreteScheduler(shift=1.0), eighth(), transformer=transformer, **texts)


@pytest.mark.parametrize("make", [sd3, flux])
@pytest.mark.parametrize("steps", [1, 4])
def test_pipelines_of_flow_models_take_it(make: Callable[[], Any], steps: int) -> None:
    pipeline = make()
    for parameter in pipeline.transformer.parameters():  # fresh ones end in zeros
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    plain, rng = pipeline.scheduler, torch.Generator().manual_seed(1)
    given = {
        "prompt_embeds": torch.randn(2, 5, 16, generator=rng),
        "pooled_prompt_embeds": torch.randn(2, 24, generator=rng),
    }

    def drawn(scheduler: Any, **more: Any) -> Tensor:
        pipeline.scheduler = scheduler
        generator = torch.Generator().manual_seed(2)
        settings = {"guidance_scale": 1.0, "num_inference_steps": steps, "height": 64, "width": 64}
        found: Tensor = pipeline(**given, **settings, **more, generator=generator, output_type="latent").images
        return found

    ode = drawn(RayFlowScheduler.from_config(plain.config, sigma=0.3))
    even = [1 - i / steps for i in range(steps)]  # Stable Diffusion 3 asks a second time next to data otherwise
    torch.testing.assert_close(ode, drawn(plain, sigmas=even), rtol=1e-3, atol=1e-3)
    # On a straight schedule mean and noise keep their ratio, so that nothing but fresh noise tells the jumps apart.
    anchored = drawn(RayFlowScheduler.from_config(plain.config, sigma=0.3, jump="anchored"))
    torch.testing.assert_close(anchored, ode, rtol=1e-3, atol=1e-3)
    fresh = drawn(RayFlowScheduler.from_config(plain.config, sigma=0.3, jump="anchored", eta=0.5))
    assert bool(fresh.isfinite().all())
    assert (float((fresh - ode).abs().max()) > 1e-2) == (steps > 1)


def test_an_image_to_image_pipeline_that_packs_what_it_has_noised_takes_ode_jumps() -> None:
    pipeline = FluxImg2ImgPipeline(**flux().components)
    for parameter in pipeline.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    plain, rng = pipeline.scheduler, torch.Generator().manual_seed(1)
    given = {
        "prompt_embeds": torch.randn(1, 5, 16, generator=rng),
        "pooled_prompt_embeds": torch.randn(1, 24, generator=rng),
        "image": torch.rand(1, 3, 64, 64, generator=rng),
    }

    def drawn(scheduler: Any) -> Tensor:
        pipeline.scheduler = scheduler
        found: Tensor = pipeline(
            **given, strength=0.5, num_inference_steps=4, guidance_scale=1.0, height=64, width=64,
            generator=torch.Generator().manual_seed(2), output_type="latent",
        ).images  # fmt: skip
        return found

    ode = drawn(RayFlowScheduler.from_config(plain.config, sigma=0.3))
    torch.testing.assert_close(ode, drawn(plain), rtol=1e-3, atol=1e-3)
    with pytest.raises(UserError, match=r"noised latents of shape \(1, 4, 8, 8\) .*write jump=\"ode\""):
        drawn(RayFlowScheduler.from_config(plain.config, sigma=0.3, jump="anchored"))


def test_points_that_were_asked_about_are_split_into_a_start_and_a_noise_of_their_laws() -> None:
    schedule = schedule_of(RayFlowScheduler(**TEACHERS["v"]))
    every = stops(RayPath(sigma=0.5), schedule, schedule.angle(schedule.sampling_times(2)))
    points = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    walk = Walk.entered(every, 0.0, points)
    torch.testing.assert_close(walk.entry(), points, rtol=1e-5, atol=1e-5)
    both = torch.stack([walk.start.flatten(), walk.noise.flatten()])
    torch.testing.assert_close(both.cov(), torch.eye(2), rtol=0, atol=0.05)


def test_a_pipeline_with_it_is_saved_and_loaded(stock: StableDiffusionPipeline, tmp_path: Path) -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.3, jump="anchored")
    expected = by_pipeline(stock, scheduler, 2)
    StableDiffusionPipeline(
        **{**stock.components, "scheduler": scheduler}, requires_safety_checker=False
    ).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["scheduler"][1] == "RayFlowScheduler"
    read = DiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(read.scheduler) is RayFlowScheduler
    assert torch.equal(by_pipeline(stock, read.scheduler, 2), expected)


@pytest.mark.parametrize("jump", ["ode", "anchored"])
@pytest.mark.parametrize("teacher", ["v", "flow"])
def test_image_to_image_starts_on_the_path_and_honours_the_strength(
    stock: StableDiffusionPipeline, teacher: str, jump: Jump
) -> None:
    scheduler = RayFlowScheduler(**TEACHERS[teacher], sigma=0.1, jump=jump)
    pipeline = StableDiffusionImg2ImgPipeline(
        **{**stock.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    image, asked = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)), list[Tensor]()
    hook = stock.unet.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[1]))
    kept = stock.vae.encode(2 * image - 1).latent_dist.mean.detach() * stock.vae.config.scaling_factor
    distances = []
    for strength, count in ((0.25, 1), (0.5, 2), (1.0, 4)):
        asked.clear()
        found = pipeline(
            "red heart", image=image, strength=strength, num_inference_steps=4, guidance_scale=2.0,
            output_type="latent", generator=torch.Generator().manual_seed(1),
        ).images  # fmt: skip
        assert bool(torch.isfinite(found).all())
        assert [float(t.flatten()[0]) for t in asked] == scheduler.timesteps[-count:].tolist()
        distances.append(float((found - kept).square().mean()))
    hook.remove()
    assert len(set(distances)) == 3


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_painting_in_runs(stock: StableDiffusionPipeline, strength: float) -> None:
    # It adds noise again after every step, which must not disturb the jumps.
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.1, jump="anchored")
    pipeline = StableDiffusionInpaintPipeline(
        **{**stock.components, "scheduler": scheduler}, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., 8:] = 1
    found = pipeline(
        "red heart", image=torch.rand(1, 3, 16, 16), mask_image=mask, height=16, width=16, strength=strength,
        num_inference_steps=4, guidance_scale=1.0, output_type="pt",
    ).images  # fmt: skip
    assert bool(torch.isfinite(found).all())


@pytest.mark.parametrize("jump", ["ode", "anchored"])
@pytest.mark.parametrize("teacher", ["v", "flow"])
def test_noised_pictures_come_back_whole_from_a_network_that_knows_them(teacher: str, jump: Jump) -> None:
    scheduler = RayFlowScheduler(**TEACHERS[teacher], sigma=0.3, jump=jump)
    scheduler.set_timesteps(4)
    x_0, noise = draws(3, 1).double(), draws(3, 2).double()
    x = scheduler.add_noise(x_0, noise, scheduler.timesteps[1:2].repeat(3))
    eps, path, schedule = own_noise(own_seeds(noise), 0, noise), RayPath(sigma=0.3), schedule_of(scheduler)
    for i, t in enumerate(scheduler.timesteps[1:], 1):
        angle = schedule.angle(schedule.sampling_times(4)[i : i + 1]).expand(3)
        scale = column(schedule.input_scale(angle), x)
        if jump == "anchored":  # every point is the noised picture's own path, with the same mean and noise
            c = path.coefficients(schedule, times_at(path, schedule, angle))
            torch.testing.assert_close(x, interpolate(c, x_0, noise, eps) / column(c.norm, x) * scale)
        else:
            torch.testing.assert_close(x, (column(angle.cos(), x) * x_0 + column(angle.sin(), x) * noise) * scale)
        assert scheduler.scale_model_input(x, t) is x
        x, data = scheduler.step(perfect(scheduler, x, x_0, t), t, x, return_dict=False)
        torch.testing.assert_close(data, x_0)
    torch.testing.assert_close(x, x_0)


def test_noise_is_added_at_a_time_of_each_sample_s_own() -> None:
    scheduler, plain = RayFlowScheduler(**TEACHERS["epsilon"]), DDIMScheduler(**SD)
    x_0, noise, timesteps = draws(3, 1), draws(3, 2), torch.tensor([0, 400, 999])
    found, expected = (s.add_noise(x_0, noise, timesteps) for s in (scheduler, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    paired = RayFlowScheduler(**TEACHERS["epsilon"], path="PairedDiffusionPath", jump="anchored")
    torch.testing.assert_close(paired.add_noise(x_0, noise, timesteps), expected, rtol=1e-4, atol=1e-4)
    assert PairedDiffusionPath() == path_of({"kind": paired.config.path})
    with pytest.raises(UserError, match="2 timesteps for 3 samples"):
        scheduler.add_noise(x_0, noise, timesteps[:2])


def test_fresh_noise_comes_from_the_pipeline_s_generator(stock: StableDiffusionPipeline) -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.3, jump="anchored", eta=0.6)

    def drawn(seed: int) -> Tensor:
        return by_pipeline(stock, scheduler, 3, generator=[torch.Generator().manual_seed(seed + i) for i in range(3)])

    assert torch.equal(drawn(1), drawn(1))
    assert float((drawn(1) - drawn(2)).abs().max()) > 1e-3
    assert torch.equal(
        by_pipeline(stock, scheduler, 1, generator=torch.Generator().manual_seed(1)), by_pipeline(stock, scheduler, 1)
    )


@pytest.mark.parametrize("jump", ["ode", "anchored"])
def test_half_precision_latents_stay_so(jump: Jump) -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.3, jump=jump)
    scheduler.set_timesteps(2)
    x, x_0 = draws().half(), draws(3, 1).half()
    for t in scheduler.timesteps:
        asked = scheduler.scale_model_input(torch.cat([x, x]), t)[:3]
        x, data = scheduler.step(perfect(scheduler, asked, x_0, t), t, x, return_dict=False)
        assert asked.dtype == x.dtype == data.dtype == torch.float16
    torch.testing.assert_close(x, x_0, rtol=0, atol=0.05)


def test_the_output_has_the_estimate_of_clean_data() -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"])
    scheduler.set_timesteps(2)
    x, x_0 = draws(), draws(3, 1)
    found = scheduler.step(perfect(scheduler, x, x_0, scheduler.timesteps[0]), scheduler.timesteps[0], x)
    torch.testing.assert_close(found.pred_original_sample, x_0, rtol=1e-3, atol=1e-3)
    assert found.prev_sample.shape == x.shape


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 1.2}, r"sigma is 1.2; .*lies in \[0, 1\]"),
        ({"sigma": -0.1}, r"lies in \[0, 1\]"),
        ({"eta": 1.01}, r"eta is 1.01; .*lies in \[0, 1\]"),
        ({"jump": "anchored", "eta": 0.5}, "carry no noise"),
        ({"path": "Spiral"}, "'Spiral'; write one of RayPath"),
        ({"path": "StraightPath", "sigma": 0.1}, "a StraightPath has no sigma"),
        ({"prediction_type": "colour"}, "prediction_type 'colour'; expected"),
        ({"start": {"mean": [0.0]}}, "a start law has law, mean and std"),
        ({"beta_schedule": "spiral"}, "beta_schedule 'spiral'"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RayFlowScheduler(**{**SD, **settings})


def test_bad_times_are_refused() -> None:
    scheduler = RayFlowScheduler(**TEACHERS["v"], sigma=0.3, jump="anchored")
    x = draws()
    with pytest.raises(UserError, match=r"timestep 999 is not among .*\[\]: call set_timesteps"):
        scheduler.step(x, 999, x)
    with pytest.raises(ValueError, match="1 to 1000 steps, found 0"):
        scheduler.set_timesteps(0)
    with pytest.raises(ValueError, match="1 to 1000 steps, found 1001"):
        scheduler.set_timesteps(1001)
    scheduler.set_timesteps(2)
    with pytest.raises(UserError, match="timestep 500 is not among the prepared ones"):
        scheduler.scale_model_input(x, 500)
    with pytest.raises(UserError, match=r"must know their start, .* write jump="):
        scheduler.step(x, 499, x)
    fitted = RayFlowScheduler(**TEACHERS["v"], start=LAW)
    fitted.set_timesteps(2)
    with pytest.raises(UserError, match="does not ask the scheduler for the network's input"):
        fitted.step(x, 999, x)
    with pytest.raises(ValueError, match="epsilon prediction has no x_0 at zero signal"):
        RayFlowScheduler(**{**TEACHERS["epsilon"], "rescale_betas_zero_snr": True}).set_timesteps(1)


def test_an_ode_sampling_may_begin_midway_without_a_word(stock: StableDiffusionPipeline) -> None:
    scheduler, plain = (
        RayFlowScheduler(**TEACHERS["v"]),
        DDIMScheduler(**TEACHERS["v"], timestep_spacing="trailing", clip_sample=False),
    )
    x = draws()
    for s in (scheduler, plain):
        s.set_timesteps(2)
    found, expected = (s.step(0.3 * x, torch.tensor(499), s.scale_model_input(x, 499))[0] for s in (scheduler, plain))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
