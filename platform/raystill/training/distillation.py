"""The task that trains a student: the teacher's UNet with an adapter, or with all of its weights, by any method."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from raystill.config.fingerprint import Knob, introduced_group
from raystill.config.shipped import located
from raystill.data.starts import start_of
from raystill.engine.protocol import Optimizer
from raystill.evaluation.pictures import curves, grid
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import LearnedTimes
from raystill.methods.method import STUDENT, TARGET, TEACHER, TIME_SAMPLER, Given
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import Distilling
from raystill.models.averaging import Average, Follower
from raystill.models.ctm import make_room
from raystill.models.pipeline import Pipeline, load_pipeline
from raystill.models.sampling import NORMAL, ODE
from raystill.models.student import Student
from raystill.models.weights import Full, Lora, prepare
from raystill.training.loop import Training
from raystill.training.task import Assembly

POINTS = 64  # points at which the density of a law of times is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillTask:
    """Settings of the student's training on stored targets, by any method."""

    teacher: Knob[str]  # directory of the teacher's pipeline
    method: Distilling = introduced_group(RayFlow)
    weights: Lora | Full = introduced_group(Lora)
    optimizer: Optimizer = introduced_group(Optimizer)
    training: Training = introduced_group(Training)
    picture_captions: Knob[tuple[str, ...]] = ()  # captions drawn during training, at the method's own step counts
    name: Knob[str] = "student"

    def build(self, device: torch.device) -> Assembly:
        """Build the student from the teacher's UNet, and the other networks that the method asks for."""
        pipeline = load_pipeline(self.teacher)
        given = given_of(pipeline, self.training.seed)
        student = self._prepared(pipeline).to(device).train()
        built = Assembly(self.method.bind(given), {STUDENT: student}, given=given)
        for role in self.method.copies:
            built.modules[role] = self._prepared(load_pipeline(self.teacher)).to(device).train()
        if self.method.asks_teacher:
            built.frozen[TEACHER] = load_pipeline(self.teacher).to(device).unet
        if self.method.keeps(0) is not None:
            built.followers[TARGET] = Follower(deepcopy(student), STUDENT, self._kept)
        heads = self.method.heads(given)
        built.modules |= {role: head.module.to(device) for role, head in heads.items()}
        built.optimizers = {role: constant(head.learning_rate) for role, head in heads.items()}
        built.small = frozenset(heads)
        if self.picture_captions:
            built.pictures[f"samples/{self.name}"] = self._picture
        if (times := self.method.learned_times) is not None:
            built.pictures["times/law"] = LawPicture(times, given.channels)
        return built

    def _prepared(self, pipeline: Pipeline) -> nn.Module:
        if self.training.checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        unet: nn.Module = prepare(pipeline.unet, self.weights)
        if self.method.tells_landing:
            make_room(unet)
        return unet

    def _kept(self, step: int) -> float:
        kept = self.method.keeps(step)
        assert kept is not None
        return kept

    def _picture(self, averages: Mapping[str, Average], _step: int) -> Image:
        tensors = averages[STUDENT].values
        device = next(iter(tensors.values())).device
        make = partial(self.method.scheduler, sampling=ODE, start=NORMAL)
        student = Student(located(self.teacher), self.weights, tensors, make, device, self.method.guides)
        shown = self.method.shown
        captions, shape = list(self.picture_captions), student.pipeline.latent_shape
        start = torch.stack([start_of(caption, 0, shape) for caption in captions]).to(device)
        condition = student.pipeline.condition(captions)
        columns = [student.pipeline.decode(student.latents(start, condition, n)).numpy() for n in shown]
        rows = [[column[i] for column in columns] for i in range(len(captions))]
        return grid(rows, captions, [f"{n} step{'s' * (n > 1)}" for n in shown])


def given_of(pipeline: Pipeline, seed: int) -> Given:
    """The facts of a teacher, and the seed of a training, that a method is bound to."""
    return Given(
        pipeline.schedule, pipeline.kind, pipeline.latent_shape[0], pipeline.condition([""]), seed,
        pipeline.feature_widths,
    )  # fmt: skip


def constant(learning_rate: float) -> Optimizer:
    """The optimizer of a method's small networks: a constant rate, since they follow the student to the end."""
    return Optimizer(learning_rate=learning_rate, warmup_steps=1, decay="constant")


class LawPicture:
    """Picture of a learned law of times: a curve for every step at which it was drawn since the run last began."""

    def __init__(self, times: LearnedTimes, channels: int) -> None:
        self.times, self.channels = times, channels
        self.drawn: dict[int, list[float]] = {}

    def __call__(self, averages: Mapping[str, Average], step: int) -> Image:
        """Draw the density q / p over the quantile of t, at this and earlier steps, for an instance with features 0."""
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
    """Density q / p at quantiles v, on the CPU, of the learned law whose network has these tensors, for an instance
    whose features are 0.
    """
    network = times.network(channels)
    network.load_state_dict({name: tensor.cpu() for name, tensor in tensors.items()})
    nothing = torch.zeros(1, channels, 1, 1)
    features = torch.zeros_like(times.features(nothing, nothing))
    return times.density(network(features), v[None])[0]
