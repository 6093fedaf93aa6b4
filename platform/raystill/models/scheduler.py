"""A scheduler for diffusers pipelines that samples a RayFlow student as raystill itself does.

It needs torch, diffusers and raystill's mathematics (`flow`), all of which `tracking.registry` puts beside a registered
model.
Import it after diffusers: raystill keeps the notes of libraries that are imported later off the terminal.

Between steps the latents are the network's own input, so that `scale_model_input` leaves them alone. Only at the first
step they are what the pipeline drew, N(0, I): `scale_model_input` and `step` both turn these into the path's end, each
time from their own bits, since a pipeline keeps what it drew and may double the batch for guidance. Pipelines of flow
models (Stable Diffusion 3, Flux) do not call `scale_model_input`; they evaluate the network at what they drew, which
`step` then splits into a start and a noise: pictures of the same law, but not the ones that raystill's sampler draws
from that start.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from raystill.config.errors import UserError
from raystill.flow.jumps import Jump, Walk, check_eta, check_jump, has_mean, held, own_noise, own_seeds, stop, stops
from raystill.flow.paths import Coefficients, End, interpolate, path_of
from raystill.flow.predictions import Latent, Prediction, check_data, column
from raystill.flow.schedules import FlowSchedule
from raystill.flow.starts import StartLaw
from raystill.models.stepping import step_of, times_of, working
from raystill.models.stock import check_settings, kind_of, schedule_of

ENDED = ("RayPath", "StraightPath")  # path classes with a setting `end`


class RayFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is Any to mypy
    """The scheduler of a student on any path: ODE or anchored jumps, a share eta of fresh noise, a start law.

    The jumps are RayFlow's (2503.07699). The schedule's settings have the names of diffusers' own schedulers, so that
    `RayFlowScheduler.from_config(pipeline.scheduler.config, sigma=0.1, jump="anchored")` works.
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
        path: str = "RayPath",
        sigma: float = 0.0,  # variance coefficient of the ray path; other paths have none
        end: End = "schedule",  # where a ray or straight path ends (`flow.paths`); other paths have no choice
        jump: Jump = "ode",
        eta: float = 0.0,  # share of fresh noise in every jump
        start: dict[str, Any] | None = None,  # law of the start as StartLaw.to_json gives it; None is N(0, I)
    ) -> None:
        check_jump(jump, eta)
        settings = {"sigma": sigma if path == "RayPath" or sigma else None, "end": end if path in ENDED else None}
        ridden = path_of({"kind": path, **{name: value for name, value in settings.items() if value is not None}})
        check_eta(ridden, jump, eta)
        self._held, self._eta = held(ridden, jump), eta
        self._law = StartLaw.from_json(start or {"law": "normal"})
        self._schedule, self._kind = schedule_of(self), kind_of(self)
        self.num_inference_steps: int | None = None
        self.timesteps = torch.zeros(0)
        self._listed: list[float] = []
        self._walk: Walk | None = None  # from the first step on, or from noising a picture before it
        self._entered, self._moving = False, False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **changes: Any) -> Any:
        """Make a RayFlowScheduler from the settings of another scheduler, flow-matching ones included, with changes;
        UserError where that scheduler's schedule is not understood, or shifts with the size of a picture.
        """
        # Settings that a class took from its own defaults count, too: diffusers would put this class's in their place.
        config = {name: value for name, value in config.items() if name != "_use_default_values"}
        if config.get("use_dynamic_shifting"):
            raise UserError(
                "the scheduler shifts its times with the size of a picture (use_dynamic_shifting), and RayFlow's does "
                "not; give the shift of one size: RayFlowScheduler.from_config(config | "
                '{"use_dynamic_shifting": False, "shift": 3.0})'
            )
        check_settings(config, "scheduler")
        if "path" in config and "end" not in config:  # settings older than the choice of an end
            changes = {"end": "own"} | changes
        if "shift" in config and "beta_start" not in config:
            straight = {"use_flow_sigmas": True, "flow_shift": config["shift"], "prediction_type": "flow_prediction"}
            changes = straight | changes
        return super().from_config(config, return_unused_kwargs, **changes)

    def __len__(self) -> int:
        return self._schedule.steps

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        mu: float | None = None,
        sigmas: Any = None,  # a list or an array
    ) -> None:
        """Prepare the timesteps of 1 to K steps: stock trailing ones, for flow teachers evenly spaced and shifted ones.

        Pipelines of flow teachers give `sigmas`, their own evenly spaced times, of which only the number counts, and
        `mu`, the parameter of dynamic shifting, which is not used without that.
        """
        del mu
        num_inference_steps = self._count(num_inference_steps, None if sigmas is None else [float(s) for s in sigmas])
        times = self._schedule.sampling_times(num_inference_steps)
        angles = self._schedule.angle(times)
        check_data(self._kind, angles[:1])
        self._stops = stops(self._held, self._schedule, angles)
        timesteps = self._schedule.timestep(times[:-1])
        straight = isinstance(self._schedule, FlowSchedule)
        self.timesteps = (timesteps.float() if straight else timesteps.round().long()).to(device)
        self._listed = [float(t) for t in timesteps]
        self.num_inference_steps = num_inference_steps
        self._walk, self._entered, self._moving = None, False, False

    def _count(self, steps: int | None, sigmas: list[float] | None) -> int:
        """The number of steps asked for; UserError where none is given, or `sigmas` are not the evenly spaced times."""
        if sigmas is None:
            if steps is None:
                raise UserError("set_timesteps needs a number of steps: write set_timesteps(4)")
            return steps
        even = [1 - i / len(sigmas) for i in range(len(sigmas))]
        if (
            not isinstance(self._schedule, FlowSchedule)
            or max(abs(a - b) for a, b in zip(sigmas, even, strict=True)) > 1e-3
        ):
            raise UserError(
                f"found sigmas {sigmas[:4]} ...; RayFlow's students know the times of their own sampler: "
                "give num_inference_steps alone"
            )
        return len(sigmas)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Accept the index at which sampling begins from pipelines of flow models; unused: timesteps tell the index."""

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        """The network's input: the sample itself, but at the first step the path's end, made from the drawn latents."""
        if self._walk is not None or step_of(self._listed, timestep) > 0 or self._plain:
            return sample
        self._entered = True
        x = self._begun(sample, eta=0.0).entry()
        return self._to_network(x, stop(self._stops, 0, len(x))).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: Tensor | float | int,
        sample: Tensor,
        generator: Generator | list[Generator] | None = None,
        return_dict: bool = True,
    ) -> Any:
        """Jump to the next timestep; fresh noise (eta > 0) comes from `generator`, or else from the starts' own bits.
        Gives the next sample and the estimate of clean data.
        """
        i = step_of(self._listed, timestep)
        here = stop(self._stops, i, len(sample))
        x = self._present(sample, here, i)
        assert self._walk is not None
        self._moving = True
        prediction = Prediction(
            self._kind, working(model_output), x, column(here.angle.cos(), x), column(here.angle.sin(), x)
        )
        data = following = prediction.data
        if i + 1 < len(self._listed):
            fresh = None
            if self._eta > 0 and generator is not None:
                fresh = randn_tensor(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            following = self._to_network(self._walk.jump(i, prediction, fresh), stop(self._stops, i + 1, len(x)))
        following, data = following.to(sample.dtype), data.to(sample.dtype)
        return DDIMSchedulerOutput(following, data) if return_dict else (following, data)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Network inputs on the path from clean latents to `noise`, N(0, I), at one timestep or one for each sample.

        Between `set_timesteps` and the first step, where image-to-image pipelines begin, it also sets the mean that the
        anchored jumps hold.
        """
        data, mean = working(original_samples), self._law.apply(working(noise))
        c = stops(self._held, self._schedule, self._schedule.angle(times_of(self._schedule, timesteps, len(data))))
        own = own_noise(own_seeds(mean), 0, mean) if has_mean(c) and bool(c.noise.any()) else mean
        if self._listed and not self._moving:
            self._walk = Walk.midway(self._stops, self._eta, mean)
        return self._to_network(interpolate(c, data, mean, own), c).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """The result of `add_noise`, under the name and argument order that pipelines of flow-matching models use."""
        return self.add_noise(sample, noise, timestep)

    @property
    def _plain(self) -> bool:
        """Whether the path's end equals the N(0, I) latents that a pipeline draws."""
        first = stop(self._stops, 0, 1)
        return self._law == StartLaw() and not (has_mean(first) and bool(first.noise.any()))

    def _begun(self, sample: Tensor, eta: float) -> Walk:
        return Walk.begin(self._stops, eta, self._law.apply(working(sample)))

    def _present(self, sample: Tensor, here: Coefficients, i: int) -> Latent:
        """The present point of each sample at unit length; the first call begins the walk, the state of a sampling."""
        if self._walk is None and i == 0:
            if self._plain or self._entered:
                self._walk = self._begun(sample, self._eta)
                return self._walk.entry()
            if self._law != StartLaw():
                raise UserError(
                    "this pipeline does not ask the scheduler for the network's input (scale_model_input), which a "
                    'start law of its own needs: write start={"law": "normal"}'
                )
            self._walk = Walk.entered(self._stops, self._eta, working(sample))
            return working(sample)
        if self._walk is None:
            if has_mean(here):
                raise UserError(
                    "anchored jumps must know their start, and this pipeline begins midway without add_noise: "
                    'write jump="ode"'
                )
            self._walk = Walk.midway(self._stops, self._eta, working(sample))
        if self._walk.start.shape != sample.shape:  # latents that a pipeline packs after it has noised them
            if has_mean(here):
                raise UserError(
                    f"this pipeline noised latents of shape {tuple(self._walk.start.shape)} and samples them as "
                    f'{tuple(sample.shape)}, and anchored jumps hold the noise: write jump="ode"'
                )
            self._walk = Walk.midway(self._stops, self._eta, working(sample))
        x = working(sample)
        return x / column(self._schedule.input_scale(here.angle), x)

    def _to_network(self, x: Latent, c: Coefficients) -> Latent:
        return x * column(self._schedule.input_scale(c.angle), x)
