"""Few-step sampling of a student on its path."""


from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.predictions import Latent, column
from raystill.flow.schedules import Schedule, trailing_times
from raystill.flow.solvers import ddim
from raystill.models.denoiser import Denoiser
from raystill.models.lora import Lora, add_adapter, load_adapter
from raystill.models.pipeline import Pipeline, load_pipeline


class Student:
    """A trained adapter on its teacher, ready to draw on its path."""

    def __init__(self, teacher: Path, lora: Lora, path: RayPath | PairedDiffusionPath, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self.path = path
        self.pipeline: Pipeline = load_pipeline(teacher)
        add_adapter(self.pipeline.unet, lora)
        load_adapter(self.pipeline.unet, tensors)
        self.pipeline.to(device)

    @torch.inference_mode()
    def latents(self, start: Latent, condition: Tensor, steps: int) -> Latent:
        """Clean latents drawn from starts of N(0, I)."""
        denoiser = Denoiser(self.pipeline.unet, self.pipeline.schedule, self.pipeline.kind)
        return sample_student(denoiser, self.path, start, condition, steps)


def sample_student(
    student: Denoiser, path: RayPath | PairedDiffusionPath, start: Latent, condition: Tensor, steps: int
) -> Latent:
    """Draw clean latents from starts of N(0, I) in `steps` network calls per sample.

    Without path noise (sigma = 0) this is the ODE jump at the stock trailing timesteps, hence stock DDIM. With path noise the start is the
    target mean, the end of the path N(mu, sigma^2 I) is drawn deterministically from it, and the jumps are anchored at mu.
    """
    times = trailing_times(student.schedule, steps)
    if isinstance(path, PairedDiffusionPath) or path.sigma == 0:
        return ddim(lambda x, t: student(x, t, condition), student.schedule, start, times)
    return _anchored(student, path, start, condition, times)


def _anchored(student: Denoiser, path: RayPath, mean: Latent, condition: Tensor, times: Float[Tensor, " n"]) -> Latent:
    """Jump x_r = s_r x0_hat + (1 - s_r) mu + sigma n_r e_hat with e_hat from the present point (2503.07699, deterministic reverse step)."""
    generator = torch.Generator().manual_seed(0)
    e_hat = torch.randn(mean.shape, generator=generator).to(mean.device)
    c = path.coefficients(student.schedule, times[:1].expand(len(mean)))
    x = column(c.mean, mean) * mean + column(c.noise, mean) * e_hat
    data = mean
    for t, r in zip(times[:-1], times[1:], strict=True):
        c = path.coefficients(student.schedule, t.expand(len(mean)))
        data = student.on_path(x, c, condition).data
        if r == 0:
            break
        e_hat = (x - column(c.data, x) * data - column(c.mean, x) * mean) / column(c.noise, x)
        c = path.coefficients(student.schedule, r.expand(len(mean)))
        x = column(c.data, x) * data + column(c.mean, x) * mean + column(c.noise, x) * e_hat
    return data
