"""RayFlow's loss against a loop over samples, against its minimum, and against the student that knows the answer."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.given import given, prompted
from tests.oracles.mixtures import Mixture
from torch import Tensor, nn

from raystill.data.tensors import to_device
from raystill.flow.importance import BatchLaw, GridTimes, SecondMomentTimes
from raystill.flow.objectives import Objective, Target
from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.predictions import Kind, column
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, UniformTimes, UShapedTimes
from raystill.methods.method import TIME_SAMPLER, Batch
from raystill.methods.rayflow import RayFlow
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
PATHS = [RayPath(), RayPath(sigma=0.3), PairedDiffusionPath()]
LOSSES: list[tuple[Target, UniformTimes | SamplingTimes]] = [
    ("data", UniformTimes()), ("velocity", SamplingTimes(student_steps=4)),
]  # fmt: skip
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]
Learned = SecondMomentTimes | GridTimes | SteinTimes
LEARNED: list[Learned] = [SecondMomentTimes(), GridTimes(), SteinTimes()]
KINDS: list[Kind] = ["epsilon", "v_prediction", "sample"]


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


def batch_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Batch:
    x_0, mu = (rng(i).normal(shape, torch.float64).to(dtype) for i in (1, 2))
    return {"x_0": x_0, "target_mean": mu, "condition": prompted(rng(3).normal((shape[0], 6, 9)).to(dtype))}


class Network(nn.Module):
    """Called as a UNet; its answer depends on point, time and condition, for each sample by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool) -> tuple[Tensor]:
        assert not return_dict
        per_sample = (timestep.double() / 1000 + condition.mean(dim=(1, 2))).view(-1, 1, 1, 1)
        return (self.gain * x.cos() + per_sample * x.flip(-1),)


class Oracle(nn.Module):
    """The expected v of a mixture, asked in the network's coordinates, times a gain."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        self.mixture, self.gain = mixture, nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool) -> tuple[Tensor]:
        del condition, return_dict
        angle = SCHEDULE.angle(((timestep.double() + 1) / 1000).clamp(max=1))
        s, n = column(angle.cos(), x), column(angle.sin(), x)
        return (self.gain * (s * x - self.mixture.posterior_mean(x, s, n)) / n,)


def one_sample(method: RayFlow, kind: Kind, batch: Batch, i: int, t: float, eps: Tensor) -> tuple[float, float]:
    """Squared errors (data, velocity) of sample i, written out with numbers from the paper's formulas."""
    time = torch.tensor([t], dtype=torch.float64)
    s_t, n_t = float(SCHEDULE.signal(time)), float(SCHEDULE.noise(time))
    mean, noise = n_t, 0.0
    if isinstance(method.path, RayPath):
        c = 1 / math.sqrt(1 + method.path.sigma**2)
        s_1, n_1 = math.cos(float(SCHEDULE.angles[-1])), math.sin(float(SCHEDULE.angles[-1]))
        mean, noise = c * n_1 * (1 - s_t) / (1 - s_1), c * method.path.sigma * n_t
    x = s_t * batch["x_0"][i] + mean * batch["target_mean"][i] + noise * eps[i]
    b = math.hypot(mean, noise)
    c = math.hypot(s_t, b)
    s, n, x = s_t / c, b / c, x / c
    k = SCHEDULE.timestep(SCHEDULE.time_of(torch.tensor([math.atan2(b, s_t)], dtype=torch.float64)))
    value = Network()(x[None], k.float(), batch["condition"]["prompt"][i : i + 1], return_dict=False)[0].detach()
    data = {"epsilon": (x - n * value[0]) / s, "v_prediction": s * x - n * value[0], "sample": value[0]}[kind]
    v, v_hat = (s * (x - s * d) / n - n * d for d in (batch["x_0"][i], data))
    return float((data - batch["x_0"][i]).square().mean()), float((v_hat - v).square().mean())


@pytest.mark.parametrize("shape", SHAPES, ids=["distinct", "square"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_losses_are_those_of_a_loop_over_the_samples(
    path: RayPath | PairedDiffusionPath, kind: Kind, shape: tuple[int, ...]
) -> None:
    batch = batch_of(shape)
    for loss, sampler in LOSSES:
        method = RayFlow(path=path, times=sampler, objective=Objective(target=loss))
        found = method.bind(given(SCHEDULE, kind)).losses({"student": Network()}, batch, rng(5), 0)["student"]
        same = rng(5)
        t = sampler.draw(shape[0], path, SCHEDULE, same).t
        eps = same.normal(shape)
        errors = torch.tensor([one_sample(method, kind, batch, i, float(t[i]), eps) for i in range(shape[0])])
        data, velocity = errors.mean(0).tolist()
        assert float(found.value.detach()) == pytest.approx(data if loss == "data" else velocity, rel=1e-4)
        assert float(found.metrics["loss/student_data_mse"]) == pytest.approx(data, rel=1e-4)
        assert found.times is not None
        assert torch.equal(found.times, t)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_a_student_that_knows_the_data_has_no_loss(path: RayPath | PairedDiffusionPath) -> None:
    batch = batch_of((3, 2, 5, 7))

    class Knows(nn.Module):
        def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool) -> tuple[Tensor]:
            return (batch["x_0"] + 0 * x,)

    for loss, _ in LOSSES:
        method = RayFlow(path=path, times=SamplingTimes(), objective=Objective(target=loss)).bind(
            given(SCHEDULE, "sample")
        )
        assert float(method.losses({"student": Knows()}, batch, rng(), 0)["student"].value) < 1e-9


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("loss", ["data", "velocity"])
def test_with_unrelated_target_means_the_minimum_is_the_posterior_mean(
    path: RayPath | PairedDiffusionPath, loss: Target
) -> None:
    # mu and eps are then one Gaussian noise of size b, and the best answer is E[x_0 | x]: proof, too, that a point is
    # asked about at the right time and scale.
    mixture = Mixture.random(3, (2, 2, 3), torch.Generator().manual_seed(0))
    oracle, count = Oracle(mixture), 20_000
    batch = {
        "x_0": mixture.draw(count, torch.Generator().manual_seed(1)),
        "target_mean": rng(2).normal((count, 2, 2, 3)).double(),
        "condition": prompted(torch.zeros(count, 1, 1)),
    }
    method = RayFlow(path=path, times=UniformTimes(), objective=Objective(target=loss)).bind(
        given(SCHEDULE, "v_prediction")
    )
    gradient = curvature = 0.0
    for gain in (0.9, 1.1):
        oracle.gain.data.fill_(gain)
        (slope,) = torch.autograd.grad(
            method.losses({"student": oracle}, batch, rng(3), 0)["student"].value, oracle.gain
        )
        gradient += float(slope) / 2
        curvature += float(slope) * (1 if gain > 1 else -1) / 0.2
    assert (
        abs(gradient / curvature) < 0.01
    )  # the loss is quadratic in the gain: its minimum lies at 1 - gradient / curvature


def networks_of(times: Learned, channels: int) -> dict[str, nn.Module]:
    """A student, and a law that has learned something."""
    law = times.network(channels)
    with torch.no_grad():
        for i, p in enumerate(law.parameters()):
            p.add_(0.5 * rng(i).normal(p.shape))
    return {"student": Network(), TIME_SAMPLER: law}


@pytest.mark.parametrize("shape", SHAPES, ids=["distinct", "square"])
@pytest.mark.parametrize("times", LEARNED, ids=lambda times: type(times).__name__)
def test_a_learned_law_is_a_role_whose_weights_keep_the_loss_unbiased(times: Learned, shape: tuple[int, ...]) -> None:
    batch, networks = batch_of(shape), networks_of(times, shape[1])
    batch = {
        name: {k: t.repeat(200, 1, 1) for k, t in value.items()} if name == "condition" else value.repeat(200, 1, 1, 1)
        for name, value in batch.items()
    }
    uniform = RayFlow(times=UniformTimes()).bind(given(SCHEDULE, "v_prediction"))
    learned = RayFlow(times=replace(times, warmup_steps=0)).bind(given(SCHEDULE, "v_prediction"))
    assert uniform.learners == uniform.turn(3) == ("student",)
    assert learned.learners == learned.turn(3) == ("student", TIME_SAMPLER)

    def mean_of(method: Any, seeds: int) -> tuple[float, float, float]:
        found = [method.losses(networks, batch, rng(seed), 7)["student"] for seed in range(seeds)]
        shares = [float(loss.metrics["times/effective_share"]) for loss in found]
        weights = [float(loss.metrics["times/weight_mean"]) for loss in found]
        return tuple(float(torch.tensor(x).mean()) for x in ([float(f.value) for f in found], shares, weights))  # type: ignore[return-value]

    with torch.no_grad():
        plain, share_plain, weight_plain = mean_of(uniform, 2)
        drawn, share, weight = mean_of(learned, 5)
    assert drawn == pytest.approx(plain, rel=0.06)
    assert (share_plain, weight_plain) == (1.0, 1.0)
    assert weight == pytest.approx(1.0, abs=0.03)
    assert 0.3 < share < 0.999


@pytest.mark.parametrize("times", LEARNED, ids=lambda times: type(times).__name__)
def test_the_law_is_taught_the_squared_gradients_as_numbers(times: Learned) -> None:
    batch, networks = batch_of((4, 2, 5, 7)), networks_of(times, 2)
    settings = RayFlow(times=times)
    method = settings.bind(given(SCHEDULE, "v_prediction"))
    found = method.losses(networks, batch, rng(1), 500)
    own = found[TIME_SAMPLER]
    law = BatchLaw(times, networks[TIME_SAMPLER](times.features(batch["x_0"], batch["target_mean"])), 500)
    same = rng(1)
    draw = law.draw(4, settings.path, SCHEDULE, same)
    eps = same.normal(batch["x_0"].shape)
    answers = settings.answers(given(SCHEDULE, "v_prediction"), networks["student"], batch, draw.t, eps)
    loss = settings.objective.per_sample(*answers).sum()
    (gradient,) = torch.autograd.grad(loss, answers.prediction.value)
    expected = law.losses(draw, gradient.square().mean(dim=(1, 2, 3)))
    assert float(own.value.detach()) == pytest.approx(sum(float(part.detach()) for part in expected.values()), rel=1e-5)
    assert list(found) == ["student", TIME_SAMPLER]  # the student's numbers are checked before the law learns them
    assert float(own.value.detach()) == pytest.approx(sum(float(part) for part in own.metrics.values()), rel=1e-6)
    assert (
        {"loss/time_sampler_deviance"} <= set(own.metrics) <= {"loss/time_sampler_deviance", "loss/time_sampler_stein"}
    )
    own.value.backward()
    assert all(p.grad is None for p in networks["student"].parameters())
    found["student"].value.backward()
    assert all(p.grad is not None for module in networks.values() for p in module.parameters())
    # The warm-up's times are those of the base, whatever the law has learned.
    plain = RayFlow(times=UniformTimes()).bind(given(SCHEDULE, "v_prediction")).losses(networks, batch, rng(1), 0)
    warm = method.losses(networks, batch, rng(1), 0)
    assert torch.equal(warm["student"].value, plain["student"].value)


def test_the_variance_of_weighted_losses_is_recorded_for_every_law() -> None:
    batch = batch_of((4, 4, 4, 4))
    for sampler in (UniformTimes(), LogitNormalTimes(importance=0.1), UShapedTimes(), SamplingTimes()):
        method = RayFlow(times=sampler).bind(given(SCHEDULE, "v_prediction"))
        metrics = method.losses({"student": Network()}, batch, rng(), 0)["student"].metrics
        assert float(metrics["times/weighted_loss_variance"]) > 0
        unweighted = float(metrics["times/effective_share"]) == 1
        assert unweighted == (sampler != LogitNormalTimes(importance=0.1))


@pytest.mark.gpu
@pytest.mark.parametrize("times", LEARNED, ids=lambda times: type(times).__name__)
def test_a_step_with_a_learned_law_waits_for_no_device(times: Learned) -> None:
    batch = {name: value.cuda() for name, value in batch_of((4, 4, 4, 4), torch.float32).items()}
    networks = {role: network.float().cuda() for role, network in networks_of(times, 4).items()}
    method = RayFlow(times=replace(times, warmup_steps=0)).bind(given(SCHEDULE, "v_prediction"))
    method.losses(networks, batch, rng(), 0)  # kernels and constants are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        for loss in method.losses(networks, batch, rng(), 1).values():
            loss.value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("times", LEARNED, ids=lambda times: type(times).__name__)
def test_a_step_with_a_learned_law_looks_at_no_value_on_the_device(times: Learned, path: RayPath, kind: Kind) -> None:
    """Tensors on `meta` have no values: whatever looked at one there would wait for a GPU, and fails here."""
    shape = SHAPES[0]
    bound = RayFlow(path=path, times=times).bind(given(SCHEDULE, kind))
    networks = {"student": Network().to("meta"), TIME_SAMPLER: times.network(shape[1]).to("meta")}
    batch = to_device(dict(batch_of(shape)), torch.device("meta"))
    for step in (0, times.warmup_steps):
        losses = bound.losses(networks, batch, rng(), step)
        assert set(losses) == {"student", TIME_SAMPLER}
        for role, loss in losses.items():
            loss.value.backward()
            assert loss.value.device.type == "meta"
            assert all(p.grad is not None and p.grad.is_meta for p in networks[role].parameters())
