"""Denoising against diffusers' own noising and velocity."""

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from raystill.flow.predictions import Kind
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.methods.denoising import Denoising, TextToImage
from raystill.models.fresh import DenoiserShape, Tokens, stable_diffusion_scheduler

STOCK = stable_diffusion_scheduler("v_prediction")
SCHEDULE = DiffusionSchedule.from_alphas(STOCK.alphas_cumprod)
EMPTY = (1, 0, 0, 0, 0)
SHAPES = [(6, 4, 2, 3), (4, 4, 4, 4)]


class Recording(nn.Module):
    """Answers 0 and remembers what it was asked."""

    def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
        self.asked = x, timestep, tokens
        return torch.zeros_like(x)


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


def batch_of(shape: tuple[int, ...]) -> dict[str, Tensor]:
    return {"latent": rng(1).normal(shape), "tokens": torch.full((shape[0], 5), 7)}


def method(kind: Kind, dropout: float = 0.0, schedule: Schedule = SCHEDULE) -> Denoising:
    return Denoising(schedule=schedule, kind=kind, empty_tokens=EMPTY, caption_dropout=dropout)


@pytest.mark.parametrize("shape", SHAPES, ids=["distinct", "square"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_points_and_targets_are_diffusers_own(kind: Kind, shape: tuple[int, ...]) -> None:
    network, batch = Recording(), batch_of(shape)
    loss = float(method(kind).losses({"denoiser": network}, batch, rng(3), 0)["denoiser"].value)
    x, k, tokens = network.asked
    signal, noise = (
        c.view(-1, 1, 1, 1) for c in (STOCK.alphas_cumprod[k] ** 0.5, (1 - STOCK.alphas_cumprod[k]) ** 0.5)
    )
    eps = (x - signal * batch["latent"]) / noise
    torch.testing.assert_close(x, STOCK.add_noise(batch["latent"], eps, k), rtol=0, atol=1e-5)
    target = {"epsilon": eps, "v_prediction": STOCK.get_velocity(batch["latent"], eps, k), "sample": batch["latent"]}[
        kind
    ]
    assert loss == pytest.approx(float(target.square().mean()), rel=1e-4)
    assert torch.equal(tokens, batch["tokens"])
    assert 0.5 < float(eps.std()) < 1.5


@pytest.mark.parametrize("shape", SHAPES, ids=["distinct", "square"])
def test_flow_points_and_targets_are_diffusers_own(shape: tuple[int, ...]) -> None:
    network, batch, stock = Recording(), batch_of(shape), FlowMatchEulerDiscreteScheduler()
    flow = method("flow_prediction", schedule=FlowSchedule())
    loss = float(flow.losses({"denoiser": network}, batch, rng(3), 0)["denoiser"].value)
    x, k, _ = network.asked
    assert k.dtype == torch.int64
    t = (k / 1000).view(-1, 1, 1, 1)
    assert bool(((t > 0) & (t <= 1)).all())
    eps = (x - (1 - t) * batch["latent"]) / t
    torch.testing.assert_close(x, stock.scale_noise(batch["latent"], k.float(), eps), rtol=0, atol=1e-5)
    assert loss == pytest.approx(float((eps - batch["latent"]).square().mean()), rel=1e-4)
    assert 0.5 < float(eps.std()) < 1.5


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule()], ids=["vp", "flow"])
def test_a_network_that_learned_its_target_is_read_as_the_pair_it_was_shown(schedule: Schedule, kind: Kind) -> None:
    batch = batch_of((6, 4, 2, 3))
    latent = batch["latent"]

    class Perfect(Recording):
        """Knows the latent, and answers as a denoiser that says so would."""

        def forward(self, x: Tensor, timestep: Tensor, tokens: Tensor) -> Tensor:
            k = timestep if isinstance(schedule, FlowSchedule) else timestep + 1
            t = k.double() / 1000
            s, n = (level.view(-1, 1, 1, 1) for level in (schedule.signal(t), schedule.noise(t)))
            self.eps = (x - s * latent) / n
            c, d = (f(schedule.angle(t)).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
            v, flow = c * self.eps - d * latent, self.eps - latent
            return {"epsilon": self.eps, "v_prediction": v, "sample": latent, "flow_prediction": flow}[kind].float()

    loss = method(kind, schedule=schedule).losses({"denoiser": Perfect()}, batch, rng(3), 0)["denoiser"]
    assert float(loss.value) < 1e-6


def test_times_are_discrete_steps_one_in_each_of_equal_bins() -> None:
    network = Recording()
    method("epsilon").losses({"denoiser": network}, batch_of((50, 1, 2, 2)), rng(), 0)
    k = network.asked[1]
    assert k.dtype == torch.int64
    assert sorted((k // 20).tolist()) == list(range(50))
    seen: set[int] = set()
    for seed in range(300):
        method("epsilon").losses({"denoiser": network}, batch_of((50, 1, 1, 1)), rng(seed), 0)
        seen |= set(network.asked[1].tolist())
    assert seen == set(range(1000))  # the first and the last step too


def test_captions_are_dropped_at_the_given_rate() -> None:
    network, batch = Recording(), batch_of((4000, 1, 1, 1))
    for rate in (0.0, 0.1, 1.0):
        method("epsilon", rate).losses({"denoiser": network}, batch, rng(2), 0)
        empty = (network.asked[2] == torch.tensor(EMPTY)).all(1)
        kept = (network.asked[2] == 7).all(1)
        assert bool((empty ^ kept).all())
        assert float(empty.double().mean()) == pytest.approx(rate, abs=0.015)


def test_text_encoder_and_unet_learn_as_one_module() -> None:
    torch.manual_seed(0)
    shape = DenoiserShape(
        widths=(8, 16), groups=4, heads=2, text_width=12, text_layers=1, text_heads=2, text_length=5, vocabulary=9
    )
    text = shape.text_encoder(Tokens(vocabulary=9, start=1, end=8, empty=EMPTY))
    whole = TextToImage(shape.unet(4, 8), text)
    x, tokens = torch.randn(2, 4, 8, 6), torch.tensor([[1, 3, 4, 8, 8], [1, 2, 8, 8, 8]])
    k = torch.tensor([3, 999])
    found = whole(x, k, tokens)
    torch.testing.assert_close(found, whole.unet(x, k, text(tokens).last_hidden_state).sample)
    found.square().mean().backward()
    assert float(text.get_input_embeddings().weight.grad[3].abs().sum()) > 0
