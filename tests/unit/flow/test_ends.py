"""Paths end at the angle at which the teacher's schedule does, so that a student is sampled where it was trained."""

import json
from dataclasses import dataclass
from pathlib import Path as Directory
from typing import Any

import pytest
import torch
from tests.given import given, prompted
from torch import Tensor, nn

from raystill.flow.jumps import Walk, entry, stop, stops
from raystill.flow.paths import (
    Coefficients,
    DiffusionPath,
    PairedDiffusionPath,
    Path,
    RayPath,
    StraightPath,
    interpolate,
    path_of,
    terminal,
)
from raystill.flow.predictions import Kind
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule, Times, zero_terminal_snr
from raystill.methods.rayflow import RayFlow
from raystill.models.fresh import stable_diffusion_scheduler
from raystill.models.pipeline import load_pipeline
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.stock import schedule_of
from raystill.targets.estimators import Teacher
from raystill.targets.solved import Generation

ALPHAS = stable_diffusion_scheduler("epsilon").alphas_cumprod.double()
SD = DiffusionSchedule.from_alphas(ALPHAS)
SCHEDULES: dict[str, Schedule] = {
    "sd": SD, "zero-snr": DiffusionSchedule.from_alphas(zero_terminal_snr(ALPHAS)), "flow": FlowSchedule(),
    "shifted": FlowSchedule(shift=3.0),
}  # fmt: skip
SIGMAS = (0.0, 0.1, 0.3, 1.0)
RAYS = [RayPath(sigma=sigma) for sigma in SIGMAS]
ONE = torch.ones(1, dtype=torch.float64)
schedules = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=list(SCHEDULES))


def latents(count: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, 5, 7, generator=rng, dtype=torch.float64) for _ in range(count)]


@schedules
@pytest.mark.parametrize("path", [*RAYS, PairedDiffusionPath(), DiffusionPath(), StraightPath()], ids=str)
def test_a_path_ends_at_the_schedule_s_own_angle(path: Path, schedule: Schedule) -> None:
    assert float((path.coefficients(schedule, ONE).angle - schedule.angle(ONE)).abs()) <= 1e-12


def test_without_noise_a_ray_ends_at_the_start_that_its_targets_were_made_from(tiny_pipeline: Directory) -> None:
    teacher = Teacher.of(load_pipeline(tiny_pipeline))
    assert terminal(teacher.denoiser.schedule).signal > 0.05  # else there was nothing to mend
    start = torch.randn(3, *teacher.pipeline.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = teacher.pipeline.condition(["red heart", "cat face", ""])
    with torch.inference_mode():
        x_0, mu = Generation(solver_steps=4, guidance=3.0).targets(teacher, start, condition, None)
    c = RayPath().coefficients(teacher.denoiser.schedule, ONE.expand(3))
    torch.testing.assert_close(interpolate(c, x_0, mu, torch.zeros_like(mu)), start, rtol=0, atol=1e-6)


@schedules
@pytest.mark.parametrize("sigma", SIGMAS)
def test_what_a_sampler_enters_with_is_normal_and_next_to_the_path_s_end(sigma: float, schedule: Schedule) -> None:
    x_0, mu, eps = latents(3)
    s_1, n_1 = terminal(schedule)
    z, path = s_1 * x_0 + n_1 * mu, RayPath(sigma=sigma)
    every = stops(path, schedule, schedule.angle(schedule.sampling_times(4)))
    first = stop(every, 0, 3)
    entered, mixed = entry(z, eps, first), torch.hypot(first.mean, first.noise)
    share = torch.hypot(first.mean / mixed, first.noise / mixed)  # of two independent N(0, I) draws
    torch.testing.assert_close(share, torch.ones_like(share), rtol=0, atol=1e-12)
    c = 1 / (1 + sigma**2) ** 0.5
    end = interpolate(path.coefficients(schedule, ONE.expand(3)), x_0, mu, eps)
    expected = -(1 - c) * s_1 * x_0 + c * sigma * (1 - n_1) * eps
    torch.testing.assert_close(entered - end, expected, rtol=0, atol=1e-9)
    drawn = torch.randn(1, 4, 200, 200, generator=torch.Generator().manual_seed(1))
    x = Walk.begin(every, 0.0, drawn).entry()
    assert float(x.std()) == pytest.approx(1, abs=0.01)
    assert abs(float(x.mean())) < 0.01


class Told(nn.Module):
    """A network that keeps the timesteps that it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[float] = []

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool) -> tuple[Tensor]:
        del condition, return_dict
        self.timesteps += timestep.tolist()
        return (torch.zeros_like(x),)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "epsilon"),
        ({}, "v_prediction"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
        ({"use_flow_sigmas": True, "flow_shift": 3.0}, "flow_prediction"),
    ],
    ids=["epsilon", "v", "zero-snr", "flow"],
)
@pytest.mark.parametrize("path", [*RAYS, StraightPath(), PairedDiffusionPath()], ids=str)
def test_the_last_time_of_training_is_the_first_one_of_sampling(
    path: RayPath | StraightPath | PairedDiffusionPath, settings: dict[str, bool], kind: Kind
) -> None:
    ray = {"sigma": path.sigma} if isinstance(path, RayPath) else {}
    scheduler = RayFlowScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind,
        path=type(path).__name__, jump="anchored", **settings, **ray,
    )  # fmt: skip
    schedule, student = schedule_of(scheduler), Told()
    x_0, mu, eps = latents(3)
    batch = {"x_0": x_0, "target_mean": mu, "condition": prompted(torch.zeros(3, 2, 4))}
    method = RayFlow(path=path)
    method.answers(given(schedule, kind, channels=2), student, batch, ONE.expand(3), eps)
    for steps in (1, 4, 8):
        scheduler.set_timesteps(steps)
        assert student.timesteps == pytest.approx([float(scheduler.timesteps[0])] * 3, abs=1e-3)


@dataclass(frozen=True)
class Before:
    """The ray and the straight path as they were, written out once more."""

    kind: str
    sigma: float = 0.0

    def coefficients(self, schedule: Schedule, t: Times) -> Coefficients:
        if self.kind == "StraightPath":
            return Coefficients(1 - t, t, torch.zeros_like(t))
        signal = schedule.signal(t)
        return Coefficients(signal, 1 - signal, self.sigma * schedule.noise(t))


@schedules
@pytest.mark.parametrize("ray", [{"kind": "RayPath", "sigma": s} for s in SIGMAS] + [{"kind": "StraightPath"}], ids=str)
def test_a_path_that_names_no_end_is_the_one_of_before_to_the_bit(ray: dict[str, Any], schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 4097, dtype=torch.float64)
    for value, expected in zip(
        path_of(ray).coefficients(schedule, t), Before(**ray).coefficients(schedule, t), strict=True
    ):
        assert torch.equal(value, expected)


def drawn(scheduler: RayFlowScheduler) -> Tensor:
    """Four steps of a network that says the same whatever it is asked."""
    x, value = (v.float() for v in latents(2))
    scheduler.set_timesteps(4)
    for t in scheduler.timesteps:
        x = scheduler.step(value, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("sigma", [0.0, 0.1, 0.3])
def test_stored_scheduler_settings_draw_as_before_to_the_bit(sigma: float, tmp_path: Directory) -> None:
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "sigma": sigma}
    RayFlowScheduler(**settings, jump="anchored").save_pretrained(tmp_path)
    file = tmp_path / "scheduler_config.json"
    written = json.loads(file.read_text())
    assert written.pop("end") == "schedule"
    file.write_text(json.dumps(written))  # as it was stored before there was a choice
    found = drawn(RayFlowScheduler.from_pretrained(tmp_path))
    old = RayFlowScheduler(**settings, jump="anchored")
    old._held = Before("RayPath", sigma)
    assert torch.equal(found, drawn(old))
    now = drawn(RayFlowScheduler(**settings, jump="anchored"))
    assert torch.equal(found, now) == (sigma == 0)  # of a mean alone all is held, whatever its factor


def test_a_ray_and_the_paired_path_without_noise_are_one_line_to_a_sampler() -> None:
    """At sigma 0 they pass the same points at the sampler's times: between them a comparison measures nothing."""
    schedule = SCHEDULES["sd"]
    for steps in (1, 4, 8):
        angles = schedule.angle(schedule.sampling_times(steps))
        ray, paired = (stops(path, schedule, angles) for path in (RayPath(), PairedDiffusionPath()))
        for value, expected in zip(ray, paired, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-12)
