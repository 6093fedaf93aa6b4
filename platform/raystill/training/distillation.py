"""The training of a distilled student: an adapter on the teacher's UNet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from PIL.Image import Image

from raystill.data.targets import start_of
from raystill.engine.protocol import Optimizer
from raystill.evaluation.pictures import grid
from raystill.methods.rayflow import RayFlow
from raystill.models.averaging import Average
from raystill.models.lora import Lora, add_adapter
from raystill.models.pipeline import load_pipeline
from raystill.models.student import Student
from raystill.training.loop import Training
from raystill.training.task import Assembly

PICTURE_STEPS = (1, 4)


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
        method = self.method.bind(teacher.schedule, teacher.kind)
        return Assembly(method, {"student": unet}, picture=self._picture if self.picture_captions else None)

    def _picture(self, averages: Mapping[str, Average]) -> Image:
        tensors = averages["student"].values
        device = next(iter(tensors.values())).device
        student = Student(Path(self.teacher), self.lora, self.method.path, tensors, device)
        captions, shape = list(self.picture_captions), student.pipeline.latent_shape
        start = torch.stack([start_of(caption, 0, shape) for caption in captions]).to(device)
        condition = student.pipeline.condition(captions)
        columns = [student.pipeline.decode(student.latents(start, condition, n)).numpy() for n in PICTURE_STEPS]
        rows = [[column[i] for column in columns] for i in range(len(captions))]
        return grid(rows, captions, [f"{n} step{'s' * (n > 1)}" for n in PICTURE_STEPS])
