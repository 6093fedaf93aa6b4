"""PeRFlow's scheduler for diffusers pipelines (2405.07510): one straight piece of trajectory in each window of time.

It needs torch, diffusers and raystill's mathematics (`flow`), all of which `tracking.registry` puts beside a registered
model.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from torch import Generator, Tensor

from raystill.config.errors import UserError
from raystill.flow.predictions import Prediction, column, point
from raystill.flow.windows import Piece, along, window_of, window_times
from raystill.models.stepping import step_of, times_of, working
from raystill.models.stock import kind_of, schedule_of


class PeRFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is Any to mypy
    """The scheduler of a PeRFlow student that was trained in `windows` windows of time.

    The schedule's settings have the names of diffusers' own schedulers.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]  # noqa: RUF012  # as diffusers writes it
    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(  # noqa: PLR0913  # diffusers reads a scheduler's settings from this signature
        self,
        *,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        rescale_betas_zero_snr: bool = False,
        use_flow_sigmas: bool = False,  # the straight schedule of flow-matching teachers
        flow_shift: float = 1.0,
        prediction_type: str = "epsilon",
        windows: int = 4,  # equal windows of time in which the student was trained
        piece: Piece = "ddim_eps",  # what is constant along the piece of a window (`flow.windows`)
    ) -> None:
        self._windows, self._piece = windows, piece
        self._schedule, self._kind = schedule_of(self), kind_of(self)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.zeros(0)
        self._listed: list[float] = []
        self._times = torch.zeros(0, dtype=torch.float64)

    def __len__(self) -> int:
        return self._schedule.steps

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Prepare the timesteps of a sampling, at least one in each window; UserError for fewer steps than windows."""
        if num_inference_steps < self._windows:
            raise UserError(
                f"found {num_inference_steps} steps for a student of {self._windows} windows: write {self._windows} or "
                "more"
            )
        self._times = window_times(self._windows, num_inference_steps)
        timesteps = self._schedule.timestep(self._times[:-1])
        self._listed = timesteps.tolist()
        self.timesteps = timesteps.float().to(device)
        self.num_inference_steps = num_inference_steps

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | int | None = None) -> Tensor:
        """The network's input: the sample itself."""
        del timestep
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float | int,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Move along the window's piece to the next timestep; gives the next sample and the estimate of clean data."""
        del generator  # nothing is drawn
        i, schedule = step_of(self._listed, timestep), self._schedule
        t, later = (self._times[k].expand(len(sample)) for k in (i, i + 1))
        angle = schedule.angle(t)
        x = working(sample) / column(schedule.input_scale(angle), working(sample))
        p = Prediction(self._kind, working(model_output), x, column(angle.cos(), x), column(angle.sin(), x))
        following = along(self._piece, schedule, window_of(self._windows, t), t, p, later)
        following = following * column(schedule.input_scale(schedule.angle(later)), x)
        found = following.to(sample.dtype), p.data.to(sample.dtype)
        return DDIMSchedulerOutput(*found) if return_dict else found

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Network inputs made of clean latents and noise, at one timestep or one for each sample."""
        angle = self._schedule.angle(times_of(self._schedule, timesteps, len(original_samples)))
        x = point(working(original_samples), working(noise), angle)
        return (x * column(self._schedule.input_scale(angle), x)).to(original_samples.dtype)
