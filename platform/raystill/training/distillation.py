"""The training of a distilled student: an adapter on the teacher's UNet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor

from raystill.data.targets import start_of
from raystill.engine.protocol import Optimizer
from raystill.evaluation.pictures import curves, grid
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import LearnedTimes
from raystill.methods.rayflow import TIME_SAMPLER, RayFlow
from raystill.models.averaging import Average
from raystill.models.lora import Lora, add_adapter
from raystill.models.pipeline import load_pipeline
from raystill.models.student import Student
from raystill.training.loop import Training
from raystill.training.task import Assembly

PICTURE_STEPS = (1, 4)
POINTS = 64  # of a law's curve


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTask:
    """Settings of the student's training on stored targets."""

    teacher: str  # directory of the pipeline
    method: RayFlow = field(default_factory=RayFlow)
    lora: Lora = field(default_factory=Lora)
    optimizer: Optimizer = field(default_factory=Optimizer)
    training: Training = field(default_factory=Training)
    picture_captions: tuple[str, ...] = ()  # drawn with 1 and 4 steps during training
    name: str = "student"

    def build(self, device: torch.device) -> Assembly:
        """The teacher's UNet with a fresh adapter."""
        teacher = load_pipeline(self.teacher)
        unet = add_adapter(teacher.unet, self.lora).to(device).train()
        built = Assembly(self.method.bind(teacher.schedule, teacher.kind), {"student": unet})
        if self.picture_captions:
            built.pictures[f"samples/{self.name}"] = self._picture
        if isinstance(times := self.method.times, LearnedTimes):
            channels = teacher.latent_shape[0]
            built.modules[TIME_SAMPLER] = times.network(channels).to(device)
            built.optimizers[TIME_SAMPLER] = law_optimizer(times)
            built.small = frozenset({TIME_SAMPLER})
            built.pictures["times/law"] = LawPicture(times, channels)
        return built

    def _picture(self, averages: Mapping[str, Average], _step: int) -> Image:
        tensors = averages["student"].values
        device = next(iter(tensors.values())).device
        student = Student(Path(self.teacher), self.lora, self.method.path, tensors, device)
        captions, shape = list(self.picture_captions), student.pipeline.latent_shape
        start = torch.stack([start_of(caption, 0, shape) for caption in captions]).to(device)
        condition = student.pipeline.condition(captions)
        columns = [student.pipeline.decode(student.latents(start, condition, n)).numpy() for n in PICTURE_STEPS]
        rows = [[column[i] for column in columns] for i in range(len(captions))]
        return grid(rows, captions, [f"{n} step{'s' * (n > 1)}" for n in PICTURE_STEPS])


def law_optimizer(times: LearnedTimes) -> Optimizer:
    """How a learned law of times is updated: at a constant rate, since it follows the student to the end."""
    return Optimizer(learning_rate=times.learning_rate, warmup_steps=1, decay="constant")


class LawPicture:
    """Curves of a learned law at every step at which it was drawn; a resumed run begins with its first picture."""

    def __init__(self, times: LearnedTimes, channels: int) -> None:
        self.times, self.channels = times, channels
        self.drawn: dict[int, list[float]] = {}

    def __call__(self, averages: Mapping[str, Average], step: int) -> Image:
        """Density q / p over the quantiles of p, of an instance whose features are 0."""
        v = midpoints(POINTS)
        density = typical_density(self.times, averages[TIME_SAMPLER].values, self.channels, v)
        self.drawn[step] = density.tolist()
        return curves(
            v.tolist(), list(self.drawn.values()), [f"step {step}" for step in self.drawn],
            title=f"{type(self.times).__name__}: q / p over the quantile of t",
        )  # fmt: skip


@torch.no_grad()
def typical_density(
    times: LearnedTimes, tensors: Mapping[str, Tensor], channels: int, v: Float[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """Density q / p at v, on the CPU, of a learned law's tensors for an instance whose features are 0."""
    network = times.network(channels)
    network.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()})
    nothing = torch.zeros(1, channels, 1, 1)
    features = torch.zeros_like(times.features(nothing, nothing))
    return times.density(network(features), v[None])[0]
