"""Networks that take the end time of their jump, the landing, as an input, and the scheduler that gives it to them
(CTM 2310.02279).

The landing is embedded as the network's own time is, goes through one linear layer that begins as zero, and is added to
the time embedding: in diffusers' place for a condition on the time embedding, `time_embedding.cond_proj`, which
pipelines of theirs leave empty.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raystill.config.errors import UserError
from raystill.flow.schedules import Schedule, Times
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.stepping import step_of

WIDTH = 64  # numbers in the embedding of a landing
WEIGHT = "time_embedding.cond_proj.weight"  # name of the landing layer's weight in a UNet


def check_room(time_condition: bool) -> None:
    """Refuse, with UserError, a UNet that has a condition on its time embedding already, where the layer would go."""
    if time_condition:
        raise UserError(
            "the teacher's UNet has a condition of the time already (time_cond_proj_dim), by which CTM's students are "
            "told where to land: distil a teacher without one, or by another method: --set method=TCD"
        )


def make_room(unet: Any) -> None:
    """Add the landing's layer to a UNet, trainable and zero, so that its outputs do not change; UserError where
    `cond_proj` is taken.
    """
    embedding = unet.time_embedding
    check_room(embedding.cond_proj is not None)
    layer = nn.Linear(WIDTH, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(layer.weight)
    embedding.cond_proj = layer.to(embedding.linear_1.weight)


def told(network: Callable[..., Any], schedule: Schedule, landing: Times, device: torch.device) -> Callable[..., Any]:
    """The network with the landing of each sample as a bound input; `landing` holds times, shape (batch,)."""
    return partial(network, timestep_cond=embedded(schedule.timestep(landing)).to(device, non_blocking=True))


def embedded(timesteps: Times) -> Float[Tensor, "batch width"]:
    """The sinusoidal embedding of the landings' timesteps, float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    found: Tensor = get_timestep_embedding(timesteps.float(), WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    return found


class CTMScheduler(RayFlowScheduler):
    """DDIM steps for a CTM student: the attached network is given the time at which each step ends."""

    _unet: Any = None
    _landing: Tensor | None = None
    _hook: RemovableHandle | None = None

    def attach(self, unet: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Give landings to this UNet from now on; `tensors` hold the trained layer, which is added if it is missing."""
        if self._hook is not None:  # else a UNet would be given its landing twice
            self._hook.remove()
        if tensors is not None:
            check_room(unet.config.get("time_cond_proj_dim") is not None)
            if unet.time_embedding.cond_proj is None:  # else the layer is there from an earlier call
                make_room(unet)
            unet.get_parameter(WEIGHT).data.copy_(tensors[WEIGHT])
        self._unet = unet
        self._hook = unet.time_embedding.register_forward_pre_hook(self._tell)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        """The network's input; also stores the landing of the coming step for the attached network."""
        if self._unet is None:
            raise UserError("a CTM student is told where it lands: call scheduler.attach(pipeline.unet, tensors) first")
        i = step_of(self._listed, timestep)
        landing = self._schedule.sampling_times(len(self._listed))[i + 1 : i + 2]
        self._landing = embedded(self._schedule.timestep(landing)).to(sample.device)
        return super().scale_model_input(sample, timestep)

    def _tell(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0], None if self._landing is None else self._landing.to(inputs[0]))
