"""Pictures that a distillation draws while it runs: what the student draws, and the law of times that it learns."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from raystill.data.starts import start_of
from raystill.evaluation.pictures import curves, grid
from raystill.flow.efficiency import midpoints
from raystill.flow.importance import LearnedTimes
from raystill.methods.method import STUDENT, TIME_SAMPLER
from raystill.methods.table import Distilling
from raystill.models.averaging import Average
from raystill.models.conditioning import Condition
from raystill.models.ctm import CTMScheduler
from raystill.models.pipeline import Pipeline
from raystill.models.sampling import NORMAL, ODE, draw, guided_network

POINTS = 64  # points at which the density of a law of times is drawn


class StudentPicture:
    """Pictures of captions by the student with its averaged weights, at the method's own step counts. It draws with the
    network that is trained; text encoders and autoencoder are there for the moment only.
    """

    def __init__(
        self, pipeline: Pipeline, student: Callable[[], nn.Module], empty: Condition, method: Distilling,
        captions: Sequence[str],
    ) -> None:  # fmt: skip
        self.pipeline, self.student, self.empty, self.method = pipeline, student, empty, method
        self.captions, self.condition = list(captions), Condition()

    @torch.no_grad()
    def __call__(self, averages: Mapping[str, Average], _step: int) -> Image:
        """Draw a row for each caption and a column for each step count."""
        pipeline, shown = self.pipeline, self.method.shown
        if not self.condition:
            self.condition = pipeline.condition(self.captions)
            pipeline.release("encoder")
        shape = pipeline.latent_shape
        start = torch.stack([start_of(caption, 0, shape) for caption in self.captions]).to(pipeline.device)
        scheduler = self.method.scheduler(pipeline.scheduler, ODE, NORMAL)
        student = self.student().to(pipeline.device)
        network = guided_network(pipeline.backbone.bound(student), self.method.guides, lambda: self.empty)
        half = next(student.parameters()).dtype is torch.bfloat16
        with (
            averaged(student, averages[STUDENT].values),
            torch.autocast(pipeline.device.type, torch.bfloat16, enabled=half),
        ):
            if isinstance(scheduler, CTMScheduler):
                scheduler.attach(student)
            drawn = [draw(network, scheduler, start, self.condition, steps) for steps in shown]
            if isinstance(scheduler, CTMScheduler):
                scheduler.detach()
        columns = [pipeline.decode(latents).numpy() for latents in drawn]
        pipeline.release("vae")
        rows = [[column[i] for column in columns] for i in range(len(self.captions))]
        return grid(rows, self.captions, [f"{n} step{'s' * (n > 1)}" for n in shown])


@contextmanager
def averaged(network: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a network have other values of its trained tensors, and then its own again, to the bit."""
    own = {name: p for name, p in network.named_parameters() if name in values}
    before = {name: p.data.clone() for name, p in own.items()}
    training = network.training
    try:
        network.eval()
        for name, parameter in own.items():
            parameter.data.copy_(values[name])
        yield
    finally:
        for name, parameter in own.items():
            parameter.data.copy_(before[name])
        network.train(training)


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
