"""Networks that are told where their jump lands, and the scheduler that tells them (CTM 2310.02279).

The landing's time is embedded as the network's own time is, goes through one linear layer that begins as zero, and is
added to the embedding of the time: diffusers' place for a condition of the time, `time_embedding.cond_proj`, which
pipelines of theirs leave empty.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raystill.config.errors import UserError
from raystill.flow.schedules import Schedule, Times
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.stepping import step_of

WIDTH = 64  # of the landing's embedding
WEIGHT = "time_embedding.cond_proj.weight"  # name of the layer's tensor


def check_room(time_condition: bool) -> None:
    """Refuse, with UserError, a UNet in which the layer's place is taken."""
    if time_condition:
        raise UserError(
            "the teacher's UNet has a condition of the time already (time_cond_proj_dim), by which CTM's students are "
            "told where to land: distil a teacher without one, or by another method: --set method=TCD"
        )


def make_room(unet: UNet2DConditionModel) -> None:
    """Give a UNet the layer, trainable, with which it says what it said before; UserError where its place is taken."""
    embedding = unet.time_embedding
    check_room(embedding.cond_proj is not None)
    layer = nn.Linear(WIDTH, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(layer.weight)
    embedding.cond_proj = layer.to(embedding.linear_1.weight)


def told(network: Callable[..., Any], schedule: Schedule, landing: Times, device: torch.device) -> Callable[..., Any]:
    """A network that is told the times at which each sample lands, shape (batch,)."""
    return partial(network, timestep_cond=embedded(schedule.timestep(landing)).to(device, non_blocking=True))


def embedded(timesteps: Times) -> Float[Tensor, "batch width"]:
    """The landing's embedding, float32."""
    found: Tensor = get_timestep_embedding(timesteps.float(), WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    return found


class CTMScheduler(RayFlowScheduler):
    """DDIM's steps, of each of which the attached network is told the end."""

    _unet: UNet2DConditionModel | None = None
    _landing: Tensor | None = None
    _hook: RemovableHandle | None = None

    def attach(self, unet: UNet2DConditionModel, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Tell a UNet from now on, after giving it the trained layer where it has none yet."""
        if self._hook is not None:  # what was told before is not told twice
            self._hook.remove()
        if tensors is not None:
            check_room(unet.config.get("time_cond_proj_dim") is not None)
            if unet.time_embedding.cond_proj is None:  # else the layer is there from an earlier call
                make_room(unet)
            unet.get_parameter(WEIGHT).data.copy_(tensors[WEIGHT])
        self._unet = unet
        self._hook = unet.time_embedding.register_forward_pre_hook(self._tell)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        """The network's input; also notes where the coming step lands."""
        if self._unet is None:
            raise UserError("a CTM student is told where it lands: call scheduler.attach(pipeline.unet, tensors) first")
        i = step_of(self._listed, timestep)
        landing = self._schedule.sampling_times(len(self._listed))[i + 1 : i + 2]
        self._landing = embedded(self._schedule.timestep(landing)).to(sample.device)
        return super().scale_model_input(sample, timestep)

    def _tell(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0], None if self._landing is None else self._landing.to(inputs[0]))
