"""The student: its teacher at first, stock DDIM without path noise, the anchored jumps with it."""

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from raystill.flow.paths import PairedDiffusionPath, RayPath, interpolate, times_at
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import DiffusionSchedule
from raystill.models.denoiser import Denoiser
from raystill.models.fresh import DenoiserShape, stable_diffusion_scheduler
from raystill.models.lora import Lora, add_adapter
from raystill.models.pipeline import load_pipeline
from raystill.models.student import Student, sample_student

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
LORA = Lora(rank=2, alpha=4.0)
STILL = [RayPath(), PairedDiffusionPath()]
PATHS = [*STILL, RayPath(sigma=0.3), RayPath(sigma=1.0)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Random tensors for an adapter, by the UNet's own names."""
    named = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
    return {name: 0.1 * torch.randn(p.shape, generator=rng(i)) for i, (name, p) in enumerate(named.items())}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_fresh_student_is_its_teacher_at_the_same_snr_on_any_path(
    path: RayPath | PairedDiffusionPath, kind: Kind
) -> None:
    shape = DenoiserShape(widths=(8, 16), groups=4, heads=2, text_width=6)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(shape.unet(4, 8).eval())
    teacher, student = networks[0], add_adapter(networks[1], LORA)
    c = path.coefficients(SCHEDULE, torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64))
    x_0, mu, eps = (torch.randn(3, 4, 6, 8, generator=rng(i)) for i in range(3))
    x, text = interpolate(c, x_0, mu, eps), torch.randn(3, 5, 6, generator=rng(4))
    with torch.no_grad():
        found = Denoiser(student, SCHEDULE, kind).on_path(x, c, text)
        at = SCHEDULE.time_of(c.angle)  # the teacher's own time, and its own point: signal^2 + noise^2 = 1
        expected = Denoiser(teacher, SCHEDULE, kind)(x / column(c.norm, x), at, text)
    torch.testing.assert_close(found.data, expected.data)
    torch.testing.assert_close(found.epsilon, expected.epsilon)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("path", STILL, ids=str)
def test_without_path_noise_a_stock_pipeline_draws_the_same(
    path: RayPath | PairedDiffusionPath, steps: int, pipeline_directory: Path
) -> None:
    tensors = moved(add_adapter(load_pipeline(pipeline_directory).unet, LORA))
    student = Student(pipeline_directory, LORA, path, tensors, torch.device("cpu"))
    start, captions = torch.randn(3, 4, 8, 8, generator=rng(7)), ["red heart", "cat face", ""]
    found = student.latents(start, student.pipeline.condition(captions), steps)
    stock = StableDiffusionPipeline.from_pretrained(pipeline_directory, unet=student.pipeline.unet, dtype=torch.float32)
    assert type(stock.scheduler) is DDIMScheduler
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        captions, latents=start, num_inference_steps=steps, guidance_scale=1.0, output_type="latent"
    ).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_s_tensors_are_the_ones_that_draw(pipeline_directory: Path) -> None:
    tensors = moved(add_adapter(load_pipeline(pipeline_directory).unet, LORA))
    zero = {name: torch.zeros_like(t) for name, t in tensors.items()}
    start = torch.randn(2, 4, 8, 8, generator=rng(7))
    drawn = []
    for held in (tensors, zero):
        student = Student(pipeline_directory, LORA, RayPath(), held, torch.device("cpu"))
        drawn.append(student.latents(start, student.pipeline.condition(["cat", "heart"]), 2))
    teacher = load_pipeline(pipeline_directory)
    denoiser = Denoiser(teacher.unet, teacher.schedule, teacher.kind)
    with torch.no_grad():
        expected = sample_student(denoiser, RayPath(), start, teacher.condition(["cat", "heart"]), 2)
    torch.testing.assert_close(drawn[1], expected)
    assert float((drawn[0] - expected).abs().max()) > 1e-3


class Knows:
    """A network that knows x_0 and remembers where it was asked."""

    def __init__(self, x_0: Tensor) -> None:
        self.x_0, self.asked = x_0, list[tuple[Tensor, Tensor]]()

    def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        self.asked.append((x, timestep))
        return (self.x_0,)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 1.0])
def test_anchored_jumps_stay_on_the_path_of_the_start_and_end_at_the_data(sigma: float, steps: int) -> None:
    path, x_0, mu = (
        RayPath(sigma=sigma),
        *(torch.randn(3, 2, 4, 5, generator=rng(i), dtype=torch.float64) for i in (1, 2)),
    )
    network, text = Knows(x_0), torch.zeros(3, 1, 1)
    found = sample_student(Denoiser(network, SCHEDULE, "sample"), path, mu, text, steps)
    assert torch.equal(found, x_0)
    times = times_at(path, SCHEDULE, SCHEDULE.angle(SCHEDULE.sampling_times(steps)[:-1]))
    assert len(network.asked) == steps
    noises = []
    for t, (x, timestep) in zip(times, network.asked, strict=True):
        c = path.coefficients(SCHEDULE, t.expand(3))
        on_path = x * column(c.norm, x)
        data = 0 if t == times[0] else x_0  # at the start the data is not known, and s_1 x_0 is left out
        noises.append((on_path - column(c.data, x) * data - column(c.mean, x) * mu) / column(c.noise, x))
        expected = SCHEDULE.timestep(SCHEDULE.time_of(c.angle))
        torch.testing.assert_close(timestep.double(), expected, rtol=0, atol=1e-3)
    assert 0.7 < float(noises[0].std()) < 1.3
    for noise in noises[2:]:  # the one e_hat, found again from every point
        torch.testing.assert_close(noise, noises[1])


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_students_are_asked_in_sampling_where_they_are_asked_in_training(steps: int) -> None:
    # Trailing timesteps, but for the ray path's own end where that comes before the teacher's start.
    stock = [k - 1 for k in range(1000, 0, -1000 // steps)]
    for path in (RayPath(), RayPath(sigma=0.1), RayPath(sigma=1.0)):
        network = Knows(torch.zeros(1, 1, 2, 2))
        sample_student(Denoiser(network, SCHEDULE, "sample"), path, torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1), steps)
        asked = [float(timestep[0]) for _, timestep in network.asked]
        assert asked[1:] == pytest.approx(stock[1:], abs=1e-3)
        assert 985 < asked[0] <= 999


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_a_picture_does_not_depend_on_its_batch(sigma: float, pipeline_directory: Path) -> None:
    tensors = moved(add_adapter(load_pipeline(pipeline_directory).unet, LORA))
    student = Student(pipeline_directory, LORA, RayPath(sigma=sigma), tensors, torch.device("cpu"))
    start, text = torch.randn(4, 4, 8, 8, generator=rng(3)), student.pipeline.condition(["a", "b", "c", "d"])
    whole = student.latents(start, text, 3)
    for i in range(4):
        torch.testing.assert_close(
            student.latents(start[i : i + 1], text[i : i + 1], 3), whole[i : i + 1], rtol=1e-4, atol=1e-4
        )
