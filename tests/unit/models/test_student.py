"""The student: its teacher at first, stock DDIM with the ODE jump, on its path with the anchored one."""

from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline
from tests.given import bound, prompted
from tests.sampling import sample_student
from tests.student import MakeScheduler, Student
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.jumps import Jump, own_noise, own_seeds
from raystill.flow.paths import DiffusionPath, PairedDiffusionPath, RayPath, StraightPath, interpolate, times_at
from raystill.flow.paths import Path as AnyPath
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.flow.starts import StartLaw
from raystill.methods.lcm import LCM
from raystill.methods.perflow import PeRFlow
from raystill.models.conditioning import part
from raystill.models.counts import timesteps_of
from raystill.models.denoiser import Denoiser
from raystill.models.fresh import DenoiserShape, stable_diffusion_scheduler
from raystill.models.pipeline import load_pipeline
from raystill.models.sampling import ODE, Sampling, Scheduler, load_scheduler, ray_scheduler
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.weights import Lora, prepare

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
LORA = Lora(rank=2, alpha=4.0)
STILL: list[AnyPath] = [RayPath(), PairedDiffusionPath(), StraightPath()]
PATHS = [*STILL, RayPath(sigma=0.3), RayPath(sigma=1.0), DiffusionPath()]
ANCHORED = Sampling(jump="anchored")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def on(path: AnyPath, sampling: Sampling = ODE, start: StartLaw | None = None) -> MakeScheduler:
    """How students on a path are sampled."""
    return partial(ray_scheduler, path=path, sampling=sampling, start=start or StartLaw())


def moved(unet: torch.nn.Module) -> dict[str, Tensor]:
    """Random tensors for an adapter, by the UNet's own names."""
    named = {name: p for name, p in unet.named_parameters() if ".lora_" in name}
    return {name: 0.1 * torch.randn(p.shape, generator=rng(i)) for i, (name, p) in enumerate(named.items())}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_fresh_student_is_its_teacher_at_the_same_snr_on_any_path(path: AnyPath, kind: Kind) -> None:
    shape = DenoiserShape(widths=(8, 16), groups=4, heads=2, text_width=6)
    networks = []
    for _ in range(2):
        torch.manual_seed(0)
        networks.append(shape.unet(4, 8).eval())
    teacher, student = networks[0], prepare(networks[1], LORA)
    c = path.coefficients(SCHEDULE, torch.tensor([0.1, 0.6, 0.9], dtype=torch.float64))
    x_0, mu, eps = (torch.randn(3, 4, 6, 8, generator=rng(i)) for i in range(3))
    x, text = interpolate(c, x_0, mu, eps), prompted(torch.randn(3, 5, 6, generator=rng(4)))
    with torch.no_grad():
        found = Denoiser(bound(student), SCHEDULE, kind).on_path(x, c, text)
        at = SCHEDULE.time_of(c.angle)  # the teacher's own time, and its own point: signal^2 + noise^2 = 1
        expected = Denoiser(bound(teacher), SCHEDULE, kind)(x / column(c.norm, x), at, text)
    torch.testing.assert_close(found.data, expected.data)
    torch.testing.assert_close(found.epsilon, expected.epsilon)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("path", [*STILL, RayPath(sigma=0.3)], ids=str)
def test_with_the_ode_jump_a_stock_pipeline_draws_the_same(path: AnyPath, steps: int, pipeline_directory: Path) -> None:
    tensors = moved(prepare(load_pipeline(pipeline_directory).network, LORA))
    student = Student(pipeline_directory, LORA, tensors, on(path), torch.device("cpu"))
    start, captions = torch.randn(3, 4, 8, 8, generator=rng(7)), ["red heart", "cat face", ""]
    found = student.latents(start, student.pipeline.condition(captions), steps)
    stock = StableDiffusionPipeline.from_pretrained(
        pipeline_directory, unet=student.pipeline.network, dtype=torch.float32
    )
    assert type(stock.scheduler) is DDIMScheduler
    stock.set_progress_bar_config(disable=True)
    expected = stock(
        captions, latents=start, num_inference_steps=steps, guidance_scale=1.0, output_type="latent"
    ).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_student_that_has_not_learned_the_guidance_is_guided(pipeline_directory: Path) -> None:
    tensors = moved(prepare(load_pipeline(pipeline_directory).network, LORA))
    method = PeRFlow(synchronised=True, guidance=4.0)
    assert (method.guides, PeRFlow().guides, LCM().guides) == (4.0, 1.0, 1.0)
    make = partial(method.scheduler, sampling=ODE, start=StartLaw())
    student = Student(pipeline_directory, LORA, tensors, make, torch.device("cpu"), method.guides)
    start, captions = torch.randn(2, 4, 8, 8, generator=rng(7)), ["red heart", "cat face"]
    stock = StableDiffusionPipeline.from_pretrained(
        pipeline_directory, unet=student.pipeline.network, dtype=torch.float32
    )
    stock.scheduler = student.scheduler
    stock.set_progress_bar_config(disable=True)
    expected = stock(captions, latents=start, num_inference_steps=4, guidance_scale=4.0, output_type="latent").images
    found = student.latents(start, student.pipeline.condition(captions), 4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_the_adapter_s_tensors_are_the_ones_that_draw(pipeline_directory: Path) -> None:
    tensors = moved(prepare(load_pipeline(pipeline_directory).network, LORA))
    zero = {name: torch.zeros_like(t) for name, t in tensors.items()}
    start = torch.randn(2, 4, 8, 8, generator=rng(7))
    drawn = []
    for held in (tensors, zero):
        student = Student(pipeline_directory, LORA, held, on(RayPath()), torch.device("cpu"))
        drawn.append(student.latents(start, student.pipeline.condition(["cat", "heart"]), 2))
    teacher = load_pipeline(pipeline_directory)
    denoiser = teacher.denoiser
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
@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule(shift=2.0)], ids=["sd", "flow"])
@pytest.mark.parametrize(
    "path", [RayPath(), PairedDiffusionPath(), *(RayPath(sigma=s) for s in (0.1, 0.7, 1.0))], ids=str
)
def test_anchored_jumps_stay_on_the_path_of_the_start_and_end_at_the_data(
    path: AnyPath, schedule: Schedule, steps: int
) -> None:
    x_0, start = (torch.randn(3, 2, 4, 5, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    network, text = Knows(x_0), prompted(torch.zeros(3, 1, 1))
    found = sample_student(Denoiser(bound(network), schedule, "sample"), path, start, text, steps, ANCHORED)
    assert torch.equal(found, x_0)
    assert len(network.asked) == steps
    grid = schedule.sampling_times(steps)[:-1]
    end = schedule.angle(torch.ones(3, dtype=torch.float64))
    mean = (start - column(end.cos(), x_0) * x_0) / column(end.sin(), x_0)  # start = s_1 x_0 + n_1 mu, the teacher's
    eps = own_noise(own_seeds(start), 0, start)
    own = times_at(path, schedule, schedule.angle(grid))
    for i, (x, timestep) in enumerate(network.asked):
        torch.testing.assert_close(timestep.double(), schedule.timestep(grid[i : i + 1]).expand(3), rtol=0, atol=1e-3)
        c = path.coefficients(schedule, own[i : i + 1].expand(3))
        point = interpolate(c, x_0, mean, eps) if i > 0 else interpolate(c, 0 * x_0, start, eps)
        length = torch.hypot(c.mean, c.noise) if i == 0 else c.norm  # of the noise alone, before x_0 is known
        expected = (
            point / column(length, x) * column(schedule.input_scale(schedule.angle(grid[i : i + 1])).expand(3), x)
        )
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [2, 4, 8])
def test_students_are_asked_in_sampling_where_they_are_asked_in_training(steps: int) -> None:
    # Trailing timesteps; in training the ray path's own end comes a little before the teacher's start.
    stock = [k - 1 for k in range(1000, 0, -1000 // steps)]
    for path in (RayPath(), RayPath(sigma=0.1), RayPath(sigma=1.0)):
        for sampling in (ODE, ANCHORED):
            network = Knows(torch.zeros(1, 1, 2, 2))
            denoiser = Denoiser(bound(network), SCHEDULE, "sample")
            sample_student(denoiser, path, torch.ones(1, 1, 2, 2), prompted(torch.zeros(1, 1, 1)), steps, sampling)
            asked = [float(timestep[0]) for _, timestep in network.asked]
            assert asked == pytest.approx(stock, abs=1e-3)
            trained = times_at(path, SCHEDULE, SCHEDULE.angle(SCHEDULE.sampling_times(steps)[:-1]))
            angles = path.coefficients(SCHEDULE, trained).angle
            assert SCHEDULE.timestep(SCHEDULE.time_of(angles)).tolist() == pytest.approx(stock, abs=14)
            assert SCHEDULE.timestep(SCHEDULE.time_of(angles[1:])).tolist() == pytest.approx(stock[1:], abs=1e-3)


@pytest.mark.parametrize(
    ("sigma", "sampling"),
    [(0.0, ODE), (0.0, ANCHORED), (0.5, ANCHORED), (0.5, Sampling(eta=0.7)), (0.5, Sampling(jump="anchored", eta=1.0))],
    ids=str,
)
def test_a_picture_does_not_depend_on_its_batch(sigma: float, sampling: Sampling, pipeline_directory: Path) -> None:
    tensors = moved(prepare(load_pipeline(pipeline_directory).network, LORA))
    student = Student(pipeline_directory, LORA, tensors, on(RayPath(sigma=sigma), sampling), torch.device("cpu"))
    start, text = torch.randn(4, 4, 8, 8, generator=rng(3)), student.pipeline.condition(["a", "b", "c", "d"])
    whole = student.latents(start, text, 3)
    for i in range(4):
        torch.testing.assert_close(
            student.latents(start[i : i + 1], part(text, slice(i, i + 1)), 3), whole[i : i + 1], rtol=1e-4, atol=1e-4
        )


def test_fresh_noise_changes_the_picture_and_a_repetition_does_not() -> None:
    class Halves(Knows):
        def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
            return (0.5 * x,)

    denoiser, start = (
        Denoiser(bound(Halves(torch.zeros(1))), SCHEDULE, "sample"),
        torch.randn(2, 3, 4, 4, generator=rng(1)),
    )
    cases: list[tuple[AnyPath, Jump]] = [(RayPath(sigma=0.5), "anchored"), (RayPath(), "ode")]
    for path, jump in cases:
        drawn = [
            sample_student(denoiser, path, start, prompted(torch.zeros(2, 1, 1)), 4, Sampling(jump=jump, eta=eta))
            for eta in (0.0, 0.5, 0.5)
        ]
        assert torch.equal(drawn[1], drawn[2])
        assert float((drawn[0] - drawn[1]).abs().max()) > 1e-3


def test_a_start_law_is_applied_before_the_first_step(pipeline_directory: Path) -> None:
    tensors = moved(prepare(load_pipeline(pipeline_directory).network, LORA))
    law = StartLaw(law="channel_normal", mean=(0.1, -0.2, 0.3, 0.0), std=(0.5, 1.0, 2.0, 0.7))
    normal = torch.randn(2, 4, 8, 8, generator=rng(7))
    fitted, plain = (
        Student(pipeline_directory, LORA, tensors, on(RayPath(), start=start), torch.device("cpu"))
        for start in (law, StartLaw())
    )
    condition = plain.pipeline.condition(["cat", "heart"])
    found = fitted.latents(normal, condition, 2)
    torch.testing.assert_close(found, plain.latents(law.apply(normal), condition, 2))
    assert float((found - plain.latents(normal, condition, 2)).abs().max()) > 1e-3


def test_an_eta_without_effect_is_refused_before_anything_is_drawn(pipeline_directory: Path) -> None:
    sampling = Sampling(jump="anchored", eta=0.5)
    with pytest.raises(UserError, match="carry no noise"):
        Student(pipeline_directory, LORA, {}, on(RayPath(), sampling), torch.device("cpu"))
    with pytest.raises(UserError, match=r"eta is 1.5"):
        Sampling(eta=1.5)
    sampling.check(RayPath(sigma=0.1))


@pytest.mark.parametrize("sampling", [ODE, ANCHORED], ids=str)
def test_the_scheduler_that_an_adapter_carries_is_read_back(
    sampling: Sampling, pipeline_directory: Path, tmp_path: Path
) -> None:
    made = ray_scheduler(load_pipeline(pipeline_directory).scheduler, RayPath(sigma=0.2), sampling, StartLaw())
    made.save_pretrained(tmp_path / "scheduler")
    found: Scheduler = load_scheduler(tmp_path)
    assert type(found) is type(made)
    assert {n: v for n, v in found.config.items() if n[0] != "_"} == {
        n: v for n, v in made.config.items() if n[0] != "_"
    }


def test_a_scheduler_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(UserError, match="'UNet2DConditionModel', which diffusers"):
        load_scheduler(tmp_path)


def test_the_stock_scheduler_is_taken_where_it_can_follow(pipeline_directory: Path) -> None:
    stock = load_pipeline(pipeline_directory).scheduler
    taken = ray_scheduler(stock, RayPath(sigma=0.3), ODE, StartLaw())
    assert type(taken) is DPMSolverMultistepScheduler
    assert timesteps_of(taken, 4) == (999, 749, 499, 249)
    law = StartLaw(law="channel_normal", mean=(0.0,) * 4, std=(2.0,) * 4)
    for path, sampling, start in (
        (RayPath(sigma=0.3), ANCHORED, StartLaw()),
        (PairedDiffusionPath(), ANCHORED, StartLaw()),
        (RayPath(), Sampling(eta=0.5), StartLaw()),
        (RayPath(), ODE, law),
    ):
        made = ray_scheduler(stock, path, sampling, start)
        assert type(made) is RayFlowScheduler
        assert made.config.path == type(path).__name__
        assert made.config.prediction_type == "v_prediction"
        assert (made.config.jump, made.config.eta) == (sampling.jump, sampling.eta)
        assert timesteps_of(made, 4) == (999, 749, 499, 249)
