"""The pieces that training a pipeline from scratch is built of fit each other, whatever the network predicts."""

import pytest
import torch

from raystill.flow.predictions import Kind
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule
from raystill.methods.denoising import Denoising
from raystill.models.fresh import DenoiserShape, Tokens, fresh_scheduler
from raystill.models.stock import kind_of, schedule_of
from raystill.training.pretraining import DenoiserTask

SHAPE = DenoiserShape(
    widths=(8, 16), groups=4, heads=2, text_width=4, text_layers=1, text_heads=2, text_length=5, vocabulary=600
)
TOKENS = Tokens(vocabulary=9, start=1, end=8, empty=(1, 8, 8, 8, 8))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_a_denoiser_is_trained_on_the_schedule_that_its_pipeline_is_written_with(kind: Kind) -> None:
    task = DenoiserTask(tokens=TOKENS, latent_channels=4, latent_size=8, kind=kind, shape=SHAPE)
    assembly = task.build(torch.device("cpu"))
    method = assembly.method
    assert isinstance(method, Denoising)
    assert type(method.schedule) is (FlowSchedule if kind == "flow_prediction" else DiffusionSchedule)
    assert method.kind == kind == kind_of(fresh_scheduler(kind))
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    torch.testing.assert_close(method.schedule.angle(t), schedule_of(fresh_scheduler(kind)).angle(t))
    rng = RandomStream.of(0)
    batch = {"latent": rng.normal((3, 4, 8, 6)), "tokens": torch.tensor([TOKENS.empty] * 3)}
    loss = method.losses(assembly.modules, batch, rng, 0)["denoiser"].value
    loss.backward()
    assert bool(loss.isfinite())
    assert all(p.grad is not None for p in assembly.modules["denoiser"].unet.parameters())  # type: ignore[union-attr]
