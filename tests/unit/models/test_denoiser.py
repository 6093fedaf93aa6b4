"""Networks asked at the right time, scale and condition, by a mixture's posterior mean and by diffusers' own calls."""

from copy import deepcopy
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.given import bound, prompted
from tests.oracles.mixtures import Mixture, MixtureDenoiser
from torch import Tensor

from raystill.flow.paths import Coefficients, PairedDiffusionPath, Path, RayPath, interpolate
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.models.conditioning import Condition, expanded, part
from raystill.models.denoiser import Denoiser, GuidedDenoiser
from raystill.models.fresh import DenoiserShape, stable_diffusion_scheduler
from raystill.models.weights import Lora, prepare

STOCK = stable_diffusion_scheduler("epsilon")
SCHEDULE = DiffusionSchedule.from_alphas(STOCK.alphas_cumprod)
FLOW = FlowSchedule()
KINDS: list[Kind] = ["epsilon", "v_prediction", "sample", "flow_prediction"]
PATHS = [RayPath(), RayPath(sigma=0.3), RayPath(sigma=1.0), PairedDiffusionPath()]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Recorded:
    """A perfect network in the place of a UNet: it is told a timestep, not an angle, and shown its own input."""

    def __init__(self, kind: Kind, mixture: Mixture, schedule: Schedule = SCHEDULE) -> None:
        self.truth, self.schedule = MixtureDenoiser(mixture, schedule, kind), schedule
        self.asked = list[tuple[Tensor, Tensor, Tensor]]()

    def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        assert not return_dict
        self.asked.append((x, timestep, condition))
        t = (timestep.double() + (0 if isinstance(self.schedule, FlowSchedule) else 1)) / 1000
        own = self.schedule.input_scale(self.schedule.angle(t.clamp(0, 1)))
        return (self.truth(x / column(own, x), t.clamp(0, 1)).value,)


def condition(count: int) -> Condition:
    return prompted(torch.randn(count, 5, 6, generator=rng(9)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 4), (4, 4, 4)], ids=["distinct", "square"])
@pytest.mark.parametrize("schedule", [SCHEDULE, FLOW], ids=["vp", "flow"])
def test_a_point_of_any_path_gets_its_posterior_mean(
    schedule: Schedule, path: RayPath | PairedDiffusionPath, kind: Kind, shape: tuple[int, int, int]
) -> None:
    # With mu ~ N(0, I) the point is data * x_0 plus a Gaussian of size hypot(mean, noise); no rescaling in the truth.
    mixture = Mixture.random(3, shape, rng())
    c = path.coefficients(schedule, torch.linspace(0.3, 0.9, 4, dtype=torch.float64))
    assert float(c.angle.max()) < float(SCHEDULE.angles[-1])  # beyond it the teacher can only be asked at its last step
    mu, eps = (torch.randn(4, *shape, generator=rng(i), dtype=torch.float64) for i in (1, 2))
    x_0 = mixture.draw(4, rng(3))
    x = interpolate(c, x_0, mu, eps)
    network = Recorded(kind, mixture, schedule)
    prediction = Denoiser(bound(network), schedule, kind).on_path(x, c, condition(4))
    b = torch.hypot(c.mean, c.noise)
    truth = mixture.posterior_mean(x, column(c.data, x), column(b, x))
    torch.testing.assert_close(prediction.data, truth, rtol=0, atol=2e-5)  # timesteps are told in single precision
    unit = (x - column(c.data, x) * truth) / column(b, x)
    torch.testing.assert_close(prediction.epsilon, unit, rtol=0, atol=2e-5)


def test_a_perfect_student_knows_the_effective_noise_of_the_point() -> None:
    shape = (3, 2, 3, 4)
    x_0, mu, eps = (torch.randn(shape, generator=rng(i), dtype=torch.float64) for i in range(3))
    c = RayPath(sigma=0.4).coefficients(SCHEDULE, torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64))
    denoiser = Denoiser(lambda *_: x_0, SCHEDULE, "sample")
    prediction = denoiser.on_path(interpolate(c, x_0, mu, eps), c, condition(3))
    unit = (column(c.mean, mu) * mu + column(c.noise, eps) * eps) / column(torch.hypot(c.mean, c.noise), mu)
    torch.testing.assert_close(prediction.epsilon, unit)


@pytest.mark.parametrize("k", [0, 1, 124, 499, 999])
def test_a_unet_is_called_as_diffusers_calls_it(k: int) -> None:
    torch.manual_seed(0)
    unet = DenoiserShape(widths=(8, 16), groups=4, heads=2, text_width=6).unet(4, 8).eval()
    x = torch.randn(3, 4, 6, 8, generator=rng())
    t = torch.full((3,), (k + 1) / 1000, dtype=torch.float64)
    with torch.no_grad():
        expected = unet(x, torch.tensor(k), condition(3)["prompt"]).sample
        found = Denoiser(bound(unet), SCHEDULE, "epsilon")(x, t, condition(3))
    torch.testing.assert_close(found.value, expected)
    torch.testing.assert_close(found.signal[0].squeeze() ** 2, STOCK.alphas_cumprod[k])


def test_each_sample_has_its_own_time() -> None:
    network = Recorded("epsilon", Mixture.random(2, (3, 3, 3), rng()))
    x, t = torch.randn(3, 3, 3, 3, generator=rng()).double(), torch.tensor([0.001, 0.5, 1.0], dtype=torch.float64)
    whole = Denoiser(bound(network), SCHEDULE, "epsilon")(x, t, condition(3))
    assert network.asked[0][1].tolist() == [0, 499, 999]
    for i in range(3):
        alone = Denoiser(bound(network), SCHEDULE, "epsilon")(
            x[i : i + 1], t[i : i + 1], part(condition(3), slice(i, i + 1))
        )
        torch.testing.assert_close(whole.data[i], alone.data[0])


def test_pure_noise_is_refused_for_epsilon_and_fine_for_v() -> None:
    config = stable_diffusion_scheduler("v_prediction").config
    zero_snr = type(STOCK).from_config(config, rescale_betas_zero_snr=True)
    schedule = DiffusionSchedule.from_alphas(zero_snr.alphas_cumprod)
    x, one = torch.randn(2, 3, 2, 2, generator=rng()), torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="needs v_prediction"):
        Denoiser(lambda *_: x, schedule, "epsilon")(x, one, condition(2))
    torch.testing.assert_close(Denoiser(lambda *_: x, schedule, "v_prediction")(x, one, condition(2)).data, -x)


class TextNetwork:
    """A network whose answer is what its condition says, and which counts its evaluations."""

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, x: Tensor, timestep: Tensor, condition: Tensor, **_: Any) -> tuple[Tensor, ...]:
        self.evaluations += len(x)
        return (x * condition.mean(dim=(1, 2)).to(x).view(-1, 1, 1, 1) + timestep.to(x).view(-1, 1, 1, 1) / 1000,)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 7.5])
def test_guidance_is_that_of_diffusers_pipelines(scale: float, kind: Kind) -> None:
    network, x, t = (
        TextNetwork(),
        torch.randn(3, 2, 4, 5, generator=rng()),
        torch.tensor([0.2, 0.7, 1.0], dtype=torch.float64),
    )
    denoiser, nothing = Denoiser(bound(network), SCHEDULE, kind), prompted(torch.randn(1, 5, 6, generator=rng(4)))
    text = condition(3)
    alone, empty = denoiser(x, t, text), denoiser(x, t, expanded(nothing, 3))
    network.evaluations = 0
    found = GuidedDenoiser(denoiser, nothing, scale)(x, t, text)
    assert network.evaluations == (3 if scale == 1 else 6)
    # noise_pred_uncond + guidance_scale * (noise_pred_text - noise_pred_uncond)
    torch.testing.assert_close(found.value, empty.value + scale * (alone.value - empty.value))
    torch.testing.assert_close(
        found.epsilon, empty.epsilon + scale * (alone.epsilon - empty.epsilon), rtol=1e-4, atol=1e-4
    )


def test_one_angle_for_several_samples_is_refused() -> None:
    x, angle = torch.randn(3, 2, 4, 4, generator=rng()), torch.tensor([0.5], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"shape \(3,\), found shape \(1,\)"):
        column.__wrapped__(angle, x)  # type: ignore[attr-defined]


UNET = DenoiserShape(widths=(8, 16), groups=4, heads=2, text_width=6)


@cache
def teacher_and_student() -> tuple[UNet2DConditionModel, UNet2DConditionModel]:
    torch.manual_seed(0)
    unet = UNET.unet(4, 8).eval()
    return unet, prepare(deepcopy(unet), Lora(rank=2, targets=("to_q", "to_v"))).eval()


def asked(schedule: Schedule, angle: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Timestep, signal and noise level at which a teacher of a schedule meets a signal-to-noise ratio, by bisection."""
    low, high = torch.zeros_like(angle), torch.ones_like(angle)
    for _ in range(80):
        t = (low + high) / 2
        before = schedule.noise(t) * angle.cos() < schedule.signal(t) * angle.sin()
        low, high = torch.where(before, t, low), torch.where(before, high, t)
    timestep = low * 1000 - (0 if isinstance(schedule, FlowSchedule) else 1)
    return timestep.clamp(min=0).float(), schedule.signal(low), schedule.noise(low)


def in_diffusers_words(kind: Kind, value: Tensor, own: Tensor, s: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
    """x_0 and noise as diffusers' schedulers read a network's value at its own input s x_0 + n e."""
    match kind:
        case "epsilon":
            return (own - n * value) / s, value
        case "v_prediction":
            return s * own - n * value, s * value + n * own
        case _:
            return own - n * value, own + (1 - n) * value


@settings(max_examples=15)
@given(
    time=st.floats(0.05, 0.9),  # beyond the teacher's last angle it can only be asked at its last step
    path=st.one_of(st.builds(RayPath, sigma=st.floats(0, 1)), st.just(PairedDiffusionPath())),
    teacher=st.sampled_from([(SCHEDULE, "epsilon"), (SCHEDULE, "v_prediction"), (FLOW, "flow_prediction")]),
    size=st.sampled_from([(8, 4), (8, 8)]),
)
def test_a_fresh_student_on_any_path_is_the_teacher_s_own_function(
    time: float, path: Path, teacher: tuple[Schedule, Kind], size: tuple[int, int]
) -> None:
    schedule, kind = teacher
    unet, student = teacher_and_student()
    shape = (2, 4, *size)
    x_0, mu, eps = (torch.randn(shape, generator=rng(i)) for i in range(3))
    c: Coefficients = path.coefficients(schedule, torch.tensor([time, time / 2], dtype=torch.float64))
    x, b = interpolate(c, x_0, mu, eps), torch.hypot(c.mean, c.noise)
    timestep, s, n = asked(schedule, torch.atan2(b, c.data))
    signal, noise = column(s, x), column(n, x)
    own = x * signal / column(c.data, x)  # the same point on the teacher's own path
    with torch.no_grad():
        value = unet(own, timestep, condition(2)["prompt"]).sample
        data, epsilon = in_diffusers_words(kind, value, own, signal, noise)
        found = Denoiser(bound(student), schedule, kind).on_path(x, c, condition(2))
    torch.testing.assert_close(found.value, value, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.data, data, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.epsilon, epsilon, rtol=1e-3, atol=1e-3)
