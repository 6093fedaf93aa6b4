"""Networks that take the end time of their jump, the landing, as an input, and the scheduler that gives it to them
(CTM 2310.02279).

The landing is embedded as the network's own time is, goes through one linear layer that begins as zero, and is added to
the time embedding: in diffusers' place for a condition on the time embedding, its `cond_proj`, which most pipelines
leave empty.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from raystill.config.errors import UserError
from raystill.flow.schedules import Times
from raystill.models.scheduler import RayFlowScheduler
from raystill.models.stepping import step_of

WIDTH = 64  # numbers in the embedding of a landing
WEIGHT = ".cond_proj.weight"  # end of the name of the landing layer's weight, after that of the time embedding


def check_room(time_condition: bool) -> None:
    """Refuse, with UserError, a network that has a condition on its time embedding already, where the layer would
    go.
    """
    if time_condition:
        raise UserError(
            "the teacher's network has a condition of the time already (time_cond_proj_dim), by which CTM's students "
            "are told where to land: distil a teacher without one, or by another method: --set method=TCD"
        )


def make_room(network: Any, place: str) -> None:
    """Add the landing's layer to a network's time embedding, the module called `place`, trainable and zero, so that its
    outputs do not change; UserError where `cond_proj` is taken.
    """
    embedding = network.get_submodule(place)
    check_room(embedding.cond_proj is not None)
    layer = nn.Linear(WIDTH, embedding.linear_1.in_features, bias=False)
    nn.init.zeros_(layer.weight)
    embedding.cond_proj = layer.to(embedding.linear_1.weight.device)  # in float32, in which it is trained


def landing_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The landing layer among trained tensors, by its name; empty where there is none."""
    return {name: tensor for name, tensor in tensors.items() if name.endswith(WEIGHT)}


def embedded(timesteps: Times) -> Float[Tensor, "batch width"]:
    """The sinusoidal embedding of the landings' timesteps, float32."""
    from diffusers.models.embeddings import get_timestep_embedding

    found: Tensor = get_timestep_embedding(timesteps.float(), WIDTH, flip_sin_to_cos=True, downscale_freq_shift=0)
    return found


class CTMScheduler(RayFlowScheduler):
    """DDIM steps for a CTM student: the attached network is given the time at which each step ends."""

    _embedding: Any = None  # the time embedding of the attached network
    _landing: Tensor | None = None
    _hook: RemovableHandle | None = None

    def attach(self, network: Any, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Give landings to this network from now on; `tensors` hold the trained layer, which is added if it is missing,
        and else the network has it.
        """
        self.detach()  # else a network would be given its landing twice
        if tensors is not None:
            (name,) = landing_of(tensors)
            place = name.removesuffix(WEIGHT)
            check_room(network.config.get("time_cond_proj_dim") is not None)
            if network.get_submodule(place).cond_proj is None:  # else the layer is there from an earlier call
                make_room(network, place)
            network.get_parameter(name).data.copy_(tensors[name])
        self._embedding = next(m for m in network.modules() if getattr(m, "cond_proj", None) is not None)
        self._hook = self._embedding.register_forward_pre_hook(self._tell)

    def detach(self) -> None:
        """Give landings to no network any more."""
        if self._hook is not None:
            self._hook.remove()
        self._embedding = self._hook = None

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        mu: float | None = None,
        sigmas: Any = None,
    ) -> None:
        """Prepare the timesteps of 1 to K steps, and the landing of the first one."""
        super().set_timesteps(num_inference_steps, device, mu, sigmas)
        self._land(0)

    def scale_model_input(self, sample: Tensor, timestep: Tensor | float | int) -> Tensor:
        """The network's input; also stores the landing of the coming step for the attached network."""
        self._check_attached()
        self._land(step_of(self._listed, timestep))
        return super().scale_model_input(sample, timestep)

    def step(
        self, model_output: Tensor, timestep: Tensor | float | int, sample: Tensor, *rest: Any, **more: Any
    ) -> Any:
        """Jump to the next timestep; also stores the landing from there: pipelines of flow models tell a scheduler of a
        coming step by nothing else.
        """
        self._check_attached()
        found = super().step(model_output, timestep, sample, *rest, **more)
        self._land(step_of(self._listed, timestep) + 1)
        return found

    def _check_attached(self) -> None:
        if self._embedding is None:
            raise UserError("a CTM student is told where it lands: call scheduler.attach(pipeline.unet, tensors) first")

    def _land(self, i: int) -> None:
        """Store the landing of step i for the attached network; nothing after the last step."""
        landing = self._schedule.sampling_times(len(self._listed))[i + 1 : i + 2]
        if len(landing):
            self._landing = embedded(self._schedule.timestep(landing))

    def _tell(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (inputs[0], None if self._landing is None else self._landing.to(inputs[0]))
