"""RayFlow's loss against a loop over samples, against its minimum, and against the student that knows the answer."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from raystill.flow.mixtures import Mixture
from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import DiffusionSchedule
from raystill.flow.times import SamplingTimes, UniformTimes
from raystill.methods.rayflow import RayFlow
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
PATHS = [RayPath(), RayPath(sigma=0.3), PairedDiffusionPath()]
SHAPES = [(3, 2, 5, 7), (4, 4, 4, 4)]
KINDS: list[Kind] = ["epsilon", "v_prediction", "sample"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    x_0, mu = (torch.randn(shape, generator=rng(i), dtype=torch.float64).to(dtype) for i in (1, 2))
    return {"x_0": x_0, "target_mean": mu, "condition": torch.randn(shape[0], 6, 9, generator=rng(3)).to(dtype)}


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


def one_sample(
    method: RayFlow, kind: Kind, batch: dict[str, Tensor], i: int, t: float, eps: Tensor
) -> tuple[float, float]:
    """Squared errors (data, velocity) of sample i, written out with numbers from the paper's formulas."""
    time = torch.tensor([t], dtype=torch.float64)
    s_t, n_t = float(SCHEDULE.signal(time)), float(SCHEDULE.noise(time))
    ray = isinstance(method.path, RayPath)
    mean, noise = (1 - s_t, method.path.sigma * n_t) if isinstance(method.path, RayPath) else (n_t, 0.0)
    assert ray or noise == 0
    x = s_t * batch["x_0"][i] + mean * batch["target_mean"][i] + noise * eps[i]
    b = math.hypot(mean, noise)
    c = math.hypot(s_t, b)
    s, n, x = s_t / c, b / c, x / c
    k = SCHEDULE.timestep(SCHEDULE.time_of(torch.tensor([math.atan2(b, s_t)], dtype=torch.float64)))
    value = Network()(x[None], k.float(), batch["condition"][i : i + 1], return_dict=False)[0].detach()
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
    for loss, sampler in (("data", UniformTimes()), ("velocity", SamplingTimes(steps=4))):
        method = RayFlow(path=path, times=sampler, loss=loss)  # type: ignore[arg-type]
        found = method.bind(SCHEDULE, kind).losses({"student": Network()}, batch, rng(5), 0)["student"]
        same = rng(5)
        t = sampler.draw(shape[0], path, SCHEDULE, same).t
        eps = torch.randn(shape, generator=same)
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

    for loss in ("data", "velocity"):
        method = RayFlow(path=path, loss=loss).bind(SCHEDULE, "sample")
        assert float(method.losses({"student": Knows()}, batch, rng(), 0)["student"].value) < 1e-9


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("loss", ["data", "velocity"])
def test_with_unrelated_target_means_the_minimum_is_the_posterior_mean(
    path: RayPath | PairedDiffusionPath, loss: str
) -> None:
    # mu and eps are then one Gaussian noise of size b, and the best answer is E[x_0 | x]: proof, too, that a point is
    # asked about at the right time and scale.
    mixture = Mixture.random(3, (2, 2, 3), rng())
    oracle, count = Oracle(mixture), 20_000
    batch = {
        "x_0": mixture.draw(count, rng(1)), "target_mean": torch.randn(count, 2, 2, 3, generator=rng(2)).double(),
        "condition": torch.zeros(count, 1, 1),
    }  # fmt: skip
    method = replace(RayFlow(path=path, times=UniformTimes()), loss=loss).bind(SCHEDULE, "v_prediction")  # type: ignore[arg-type]
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
