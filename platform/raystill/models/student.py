"""Few-step sampling of a student on its path."""

import hashlib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from raystill.flow.paths import PairedDiffusionPath, RayPath, times_at
from raystill.flow.predictions import Latent, column
from raystill.flow.solvers import ddim
from raystill.models.denoiser import Denoiser
from raystill.models.lora import Lora, add_adapter, load_adapter
from raystill.models.pipeline import Pipeline, load_pipeline


class Student:
    """A trained adapter merged into its teacher, ready to draw on its path."""

    def __init__(
        self,
        teacher: Path,
        lora: Lora,
        path: RayPath | PairedDiffusionPath,
        tensors: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self.path = path
        self.pipeline: Pipeline = load_pipeline(teacher)
        add_adapter(self.pipeline.unet, lora)
        load_adapter(self.pipeline.unet, tensors)
        self.pipeline.unet.fuse_lora()  # merged: a call costs what the teacher's does
        self.pipeline.to(device)

    @torch.inference_mode()
    def latents(self, start: Latent, condition: Tensor, steps: int) -> Latent:
        """Clean latents drawn from starts of N(0, I)."""
        denoiser = Denoiser(self.pipeline.unet, self.pipeline.schedule, self.pipeline.kind)
        return sample_student(denoiser, self.path, start, condition, steps)


def start_law(path: RayPath | PairedDiffusionPath) -> dict[str, str]:
    """How sampling starts, as an adapter's card says it; plain diffusers can follow the first of the two only."""
    noisy = isinstance(path, RayPath) and path.sigma > 0
    return {"law": "normal", "jump": "anchored"} if noisy else {"law": "normal"}


def sample_student(
    student: Denoiser, path: RayPath | PairedDiffusionPath, start: Latent, condition: Tensor, steps: int
) -> Latent:
    """Draw clean latents from starts of N(0, I) in `steps` network calls per sample.

    Without path noise (sigma = 0) this is the ODE jump at the stock trailing timesteps, hence stock DDIM. With path
    noise the start is the target mean, the end of the path N(mu, sigma^2 I) is drawn deterministically from it, and the
    jumps are anchored at mu, at the path's times of the stock signal-to-noise ratios (`flow.times.SamplingTimes`).
    """
    times = student.schedule.sampling_times(steps)
    if isinstance(path, PairedDiffusionPath) or path.sigma == 0:
        return ddim(lambda x, t: student(x, t, condition), student.schedule, start, times)
    own = times_at(path, student.schedule, student.schedule.angle(times[:-1]))
    return _anchored(student, path, start, condition, torch.cat([own, times[-1:]]))


def _anchored(student: Denoiser, path: RayPath, mean: Latent, condition: Tensor, times: Float[Tensor, " n"]) -> Latent:
    """Jump x_r = s_r x0_hat + (1 - s_r) mu + sigma n_r e_hat with e_hat from the present point (2503.07699,
    deterministic reverse step).
    """
    e_hat = _own_noise(mean)
    c = path.coefficients(student.schedule, times[:1].expand(len(mean)))
    x = column(c.mean, mean) * mean + column(c.noise, mean) * e_hat
    data = mean
    for t, r in pairwise(times):
        c = path.coefficients(student.schedule, t.expand(len(mean)))
        data = student.on_path(x, c, condition).data
        if r == 0:
            break
        e_hat = (x - column(c.data, x) * data - column(c.mean, x) * mean) / column(c.noise, x)
        c = path.coefficients(student.schedule, r.expand(len(mean)))
        x = column(c.data, x) * data + column(c.mean, x) * mean + column(c.noise, x) * e_hat
    return data


def _own_noise(mean: Latent) -> Latent:
    """Draw N(0, I) noise for each sample from its own start's bits, so that a picture does not depend on its batch."""
    rows = mean.float().cpu()  # HOST SYNC: one per sampling
    seeds = [int.from_bytes(hashlib.sha256(row.numpy().tobytes()).digest()[:4], "big") for row in rows]
    drawn = [torch.randn(mean.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn).to(mean)
