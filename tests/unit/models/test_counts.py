"""Every step count: raystill's own jumps, the scheduler that an adapter carries and plain diffusers draw the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from tests.given import bound, prompted
from tests.unit.models.test_scheduler import sd3
from torch import Tensor

from raystill.flow.predictions import Latent
from raystill.flow.schedules import DiffusionSchedule, Schedule
from raystill.flow.solvers import ddim
from raystill.methods.ctm import CTM
from raystill.methods.lcm import LCM
from raystill.methods.method import Distillation
from raystill.methods.perflow import PeRFlow
from raystill.methods.rayflow import RayFlow
from raystill.methods.reflow import Reflow
from raystill.methods.scott import SCott
from raystill.methods.tcd import TCD
from raystill.models.conditioning import Condition
from raystill.models.counts import sigmas_of, timesteps_of, wrong_counts
from raystill.models.denoiser import Denoiser, Network
from raystill.models.sampling import NORMAL, ODE, Sampling, draw, load_scheduler
from raystill.models.stock import ddim_sampler, kind_of, schedule_of, stock_sampler

SD: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LISTED = [0.02 * (k + 1) for k in range(49)] + [1.0]  # of a schedule of 50 steps that ends in no signal
TEACHERS: dict[str, SchedulerMixin] = {
    "epsilon": DDIMScheduler(**SD, prediction_type="epsilon"),
    "v": DDIMScheduler(**SD, prediction_type="v_prediction"),
    "zero-snr": DDIMScheduler(**SD, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    "listed": DDIMScheduler(trained_betas=LISTED, num_train_timesteps=50, prediction_type="sample"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
}
COUNTS = range(1, 17)
CAPTIONS = ["red heart", ""]
STARTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def plain(pipeline_directory: Path) -> StableDiffusionPipeline:
    """The tiny pipeline with a network that is smaller still; random, it stands for one of any kind."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4, mid_block_type=None,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("UpBlock2D",), cross_attention_dim=12,
        attention_head_dim=2,
    )  # fmt: skip
    return StableDiffusionPipeline.from_pretrained(pipeline_directory, unet=unet, dtype=torch.float32)


def by_plain_diffusers(plain: StableDiffusionPipeline, scheduler: SchedulerMixin, **call: Any) -> Tensor:
    pipeline = StableDiffusionPipeline(**{**plain.components, "scheduler": scheduler}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"latents": STARTS, "guidance_scale": 1.0, "output_type": "latent"}
    latents: Tensor = pipeline(CAPTIONS, **settings, **call).images
    return latents


def own_jumps(network: Network, teacher: SchedulerMixin, condition: Condition) -> Callable[[int], Latent]:
    """Raystill's DDIM by step count, on a teacher's schedule."""
    schedule, denoiser = schedule_of(teacher), Denoiser(network, schedule_of(teacher), kind_of(teacher))
    return lambda n: ddim(lambda x, t: denoiser(x, t, condition), schedule, STARTS, schedule.sampling_times(n))


@torch.no_grad()
@pytest.mark.parametrize("name", TEACHERS)
def test_every_count_is_drawn_alike(name: str, plain: StableDiffusionPipeline, tmp_path: Path) -> None:
    stock = stock_sampler(TEACHERS[name])
    RayFlow().scheduler(stock, ODE, NORMAL).save_pretrained(tmp_path / "scheduler")
    carried = load_scheduler(tmp_path)
    condition, network = prompted(plain.encode_prompt(CAPTIONS, "cpu", 1, False)[0]), bound(plain.unet)
    own = own_jumps(network, stock, condition)
    for n in COUNTS:
        expected = own(n)
        found = draw(network, carried, STARTS, condition, n)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        found = by_plain_diffusers(plain, type(carried).from_pretrained(tmp_path / "scheduler"), num_inference_steps=n)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        if n in (1, 4, 7) and (sigmas := sigmas_of(carried, n)):  # as the card of a flow teacher's student says
            found = by_plain_diffusers(plain, carried, num_inference_steps=n, sigmas=list(sigmas))
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert (name == "flow") == bool(sigmas_of(carried, 4))


@pytest.mark.parametrize("name", ["epsilon", "v", "zero-snr", "listed"])
def test_diffusion_students_are_drawn_by_diffusers_alone(name: str) -> None:
    stock = stock_sampler(TEACHERS[name])
    carried = ddim_sampler(stock)
    assert type(carried) is DPMSolverMultistepScheduler
    json.loads(carried.to_json_string(), parse_constant=pytest.fail)  # infinities are no JSON
    t = torch.linspace(0, 1, 77, dtype=torch.float64)
    torch.testing.assert_close(schedule_of(carried).angle(t), schedule_of(stock).angle(t), rtol=0, atol=1e-6)
    assert kind_of(carried) == kind_of(stock)


@torch.no_grad()
def test_a_flow_pipeline_with_the_sigmas_of_the_card_draws_alike() -> None:
    pipeline: StableDiffusion3Pipeline = sd3()
    for parameter in pipeline.transformer.parameters():  # fresh ones end in zeros
        torch.nn.init.normal_(parameter, std=0.1)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, rng = stock_sampler(pipeline.scheduler), torch.Generator().manual_seed(1)
    text, pooled = torch.randn(2, 5, 16, generator=rng), torch.randn(2, 24, generator=rng)

    def network(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        found: Tensor = pipeline.transformer(x, condition["prompt"], pooled, t, return_dict=False)[0]
        return found

    def drawn(n: int, **sigmas: Any) -> Tensor:
        call = {"latents": STARTS, "guidance_scale": 1.0, "height": 64, "width": 64, "output_type": "latent"}
        pipeline.scheduler = scheduler
        found: Tensor = pipeline(
            prompt_embeds=text, pooled_prompt_embeds=pooled, num_inference_steps=n, **call, **sigmas
        ).images
        return found

    own = own_jumps(network, scheduler, prompted(text))
    for n in COUNTS:
        torch.testing.assert_close(drawn(n, sigmas=list(sigmas_of(scheduler, n))), own(n), rtol=0, atol=1e-4)
    assert timesteps_of(scheduler, 4) == pytest.approx((1000, 900, 750, 500))
    scheduler.set_timesteps(4)  # without them the shift is applied twice, the second time to the last time of training
    assert scheduler.timesteps.tolist() == pytest.approx([1000, 857.7, 602.2, 8.9], abs=0.1)
    assert float((drawn(4) - own(4)).abs().max()) > 1e-2


@pytest.mark.parametrize("steps", [1000, 777, 50, 30])
def test_timesteps_are_raystills_own_or_the_count_is_wrong(steps: int) -> None:
    carried = ddim_sampler(DDIMScheduler(**SD, num_train_timesteps=steps))
    schedule = schedule_of(carried)
    assert isinstance(schedule, DiffusionSchedule)
    counts = tuple(range(1, min(steps, 130) + 1))
    wrong = wrong_counts(carried, counts, None)
    assert list(wrong) == {1000: [61, 103, 121, 122], 777: [43, 83, 86], 50: [29, 31], 30: [13, 26]}[steps]
    for n in set(counts) - set(wrong):
        own = schedule.timestep(schedule.sampling_times(n)[:-1]).round().long().tolist()
        assert list(timesteps_of(carried, n)) == own
    if steps == 1000:
        assert (wrong[61], wrong[121]) == ([60, 62], [120, 123])


STRAIGHT = FlowMatchEulerDiscreteScheduler(shift=3.0)
BENT = DDIMScheduler(**SD)


@pytest.mark.parametrize(
    ("method", "stock", "wrong"),
    [
        (LCM(intervals=50), BENT, {}),  # its scheduler asks on the grid in any count
        (SCott(intervals=40), BENT, {}),
        (LCM(intervals=50), STRAIGHT, {3: [2, 5], 4: [5, 2], 7: [5, 10], 8: [10, 5]}),
        (SCott(intervals=40), STRAIGHT, {3: [2, 4], 7: [8, 5]}),
        (TCD(intervals=40), BENT, {3: [2, 4], 7: [8, 5]}),
        (TCD(intervals=24), BENT, {7: [6, 8]}),
        (CTM(intervals=16), BENT, {3: [2, 4], 7: [8, 4]}),
        (CTM(intervals=16), STRAIGHT, {3: [2, 4], 7: [8, 4]}),
        (RayFlow(), BENT, {}),
        (RayFlow(), STRAIGHT, {}),
        (Reflow(), BENT, {}),
        (PeRFlow(windows=3), BENT, {1: [3], 2: [3]}),
    ],
    ids=str,
)
def test_counts_beside_the_times_of_training_are_wrong(
    method: Distillation, stock: SchedulerMixin, wrong: dict[int, list[int]]
) -> None:
    schedule: Schedule = schedule_of(stock)
    scheduler = method.scheduler(stock_sampler(stock), ODE, NORMAL)
    assert wrong_counts(scheduler, (1, 2, 3, 4, 7, 8), method.trained_times(schedule)) == wrong
    noisy = TCD(intervals=40).scheduler(stock_sampler(stock), Sampling(eta=0.3), NORMAL)
    assert list(wrong_counts(noisy, (3, 8), TCD(intervals=40).trained_times(schedule))) == [3]


def test_an_adapter_of_before_draws_as_it_did(plain: StableDiffusionPipeline, tmp_path: Path) -> None:
    old = DDIMScheduler(**SD, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False)
    old.save_pretrained(tmp_path / "scheduler")
    assert json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())["_class_name"] == "DDIMScheduler"
    condition = prompted(plain.encode_prompt(CAPTIONS, "cpu", 1, False)[0])
    for n in (3, 4):
        found = draw(bound(plain.unet), load_scheduler(tmp_path), STARTS, condition, n)
        assert torch.equal(found, by_plain_diffusers(plain, old, num_inference_steps=n))
