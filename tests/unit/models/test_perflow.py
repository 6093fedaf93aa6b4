"""PeRFlow's scheduler in diffusers' own pipelines, and the samplers of other methods."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tests.student import Student
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.starts import StartLaw
from raystill.methods.consistency import grid_of
from raystill.methods.ctm import CTM
from raystill.methods.lcm import LCM
from raystill.methods.method import Distillation
from raystill.methods.perflow import PeRFlow
from raystill.methods.table import METHODS
from raystill.models.conditioning import part
from raystill.models.counts import timesteps_of
from raystill.models.ctm import CTMScheduler, make_room
from raystill.models.perflow import PeRFlowScheduler
from raystill.models.pipeline import load_pipeline
from raystill.models.sampling import ODE, ctm_scheduler, draw, lcm_scheduler, perflow_scheduler
from raystill.models.weights import Lora, prepare

CAPTIONS = ["red heart", "cat face", ""]
LANDING = "time_embedding.cond_proj.weight"


def starts(count: int = 3) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("windows", [1, 2, 4])
def test_one_step_a_window_is_stock_ddim(windows: int, pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    condition = pipeline.condition(CAPTIONS)
    ours = draw(pipeline.call, perflow_scheduler(pipeline.scheduler, windows, "ddim_eps"), starts(), condition, windows)
    stock = draw(pipeline.call, pipeline.scheduler, starts(), condition, windows)
    assert type(pipeline.scheduler) is DDIMScheduler
    torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("steps", [4, 8])
def test_a_stock_pipeline_draws_what_raystill_draws(
    method: type[Distillation], steps: int, pipeline_directory: Path
) -> None:
    made = load_pipeline(pipeline_directory)
    scheduler = method().scheduler(made.scheduler, ODE, StartLaw())
    if isinstance(scheduler, CTMScheduler):
        make_room(made.network, "time_embedding")
        torch.nn.init.normal_(made.network.get_parameter(LANDING), std=0.1, generator=torch.Generator().manual_seed(1))
        scheduler.attach(made.network)
    condition = made.condition(CAPTIONS)
    if method().takes_eta or method in (PeRFlow, CTM):  # LCM's noise comes from a generator: each has its own
        found = draw(made.call, scheduler, starts(), condition, steps)
        stock = StableDiffusionPipeline.from_pretrained(pipeline_directory, unet=made.network, dtype=torch.float32)
        stock.scheduler = scheduler
        stock.set_progress_bar_config(disable=True)
        expected = stock(
            CAPTIONS, latents=starts(), num_inference_steps=steps, guidance_scale=1.0, output_type="latent"
        ).images
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    whole = draw(made.call, scheduler, starts(), condition, steps)
    torch.testing.assert_close(
        draw(made.call, scheduler, starts()[1:2], part(condition, slice(1, 2)), steps), whole[1:2], rtol=1e-4, atol=1e-4
    )


def test_fewer_steps_than_windows_are_refused(pipeline_directory: Path) -> None:
    scheduler = perflow_scheduler(load_pipeline(pipeline_directory).scheduler, 4, "ddim_eps")
    with pytest.raises(UserError, match="found 3 steps for a student of 4 windows"):
        scheduler.set_timesteps(3)
    with pytest.raises(UserError, match=r"has \[1, 2\], and PeRFlow takes a step in each of its 4 windows"):
        PeRFlow().check(ODE, 8, (1, 2, 4, 8))


def test_it_is_saved_and_read_with_its_windows(pipeline_directory: Path, tmp_path: Path) -> None:
    perflow_scheduler(load_pipeline(pipeline_directory).scheduler, 2, "diff_eps").save_pretrained(tmp_path)
    found = PeRFlowScheduler.from_pretrained(tmp_path)
    assert (found.config.windows, found.config.piece) == (2, "diff_eps")
    assert found.config.prediction_type == "v_prediction"


def test_noise_is_added_as_the_teacher_was_trained(pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    x_0, noise, timesteps = starts(), starts().flip(0), torch.tensor([999, 500, 3])
    found = perflow_scheduler(pipeline.scheduler, 4, "ddim_eps").add_noise(x_0, noise, timesteps)
    torch.testing.assert_close(found, pipeline.scheduler.add_noise(x_0, noise, timesteps), rtol=1e-4, atol=1e-5)


def test_timesteps_that_are_neither_one_nor_one_a_sample_are_refused(pipeline_directory: Path) -> None:
    scheduler = perflow_scheduler(load_pipeline(pipeline_directory).scheduler, 4, "ddim_eps")
    with pytest.raises(UserError, match="found 2 timesteps for 3 samples; give one, or one for each"):
        scheduler.add_noise(starts(), starts(), torch.tensor([999, 499]))


@pytest.mark.parametrize("intervals", [20, 25, 40, 50])
def test_lcm_s_scheduler_asks_where_its_student_was_trained(intervals: int, pipeline_directory: Path) -> None:
    pipeline = load_pipeline(pipeline_directory)
    trained = {round(float(t)) for t in pipeline.schedule.timestep(grid_of(pipeline.schedule, intervals)[1:])}
    for steps in (1, 2, 4, 8):
        asked = timesteps_of(lcm_scheduler(pipeline.scheduler, intervals), steps)
        assert set(map(round, asked)) <= trained
        assert asked[0] == 999


def test_a_student_is_drawn_by_its_method_s_scheduler(pipeline_directory: Path) -> None:
    unet = prepare(load_pipeline(pipeline_directory).network, Lora(rank=2, alpha=2.0))
    tensors = {name: torch.zeros_like(p) for name, p in unet.named_parameters() if ".lora_" in name}
    make = partial(LCM().scheduler, sampling=ODE, start=StartLaw())
    student = Student(pipeline_directory, Lora(rank=2, alpha=2.0), tensors, make, torch.device("cpu"))
    assert type(student.scheduler).__name__ == "LCMScheduler"
    found = student.latents(starts(), student.pipeline.condition(CAPTIONS), 2)
    assert bool(torch.isfinite(found).all())


def test_a_ctm_scheduler_is_attached_again_and_not_to_a_network_with_a_condition_of_its_own(
    pipeline_directory: Path,
) -> None:
    pipeline = load_pipeline(pipeline_directory)
    scheduler, unet = ctm_scheduler(pipeline.scheduler), pipeline.network
    assert isinstance(scheduler, CTMScheduler)
    width = unet.time_embedding.linear_1.in_features
    for value in (1.0, 2.0):
        scheduler.attach(unet, {LANDING: torch.full((width, 64), value)})
        assert bool((unet.get_parameter(LANDING) == value).all())
    assert len(unet.time_embedding._forward_pre_hooks) == 1
    told = UNet2DConditionModel.from_config(unet.config, time_cond_proj_dim=64)
    with pytest.raises(UserError, match="has a condition of the time already"):
        scheduler.attach(told, {LANDING: torch.ones(width, 64)})
