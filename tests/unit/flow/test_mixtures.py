"""The oracle itself: against Monte Carlo, against the score, and in its limits."""

import pytest
import torch
from tests.oracles.mixtures import Mixture, MixtureDenoiser

from raystill.flow.paths import Coefficients, PairedDiffusionPath, Path, RayPath, interpolate
from raystill.flow.predictions import Kind, column
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
SHAPES = [(2, 3, 4), (2, 2, 2)]
KINDS: list[Kind] = ["epsilon", "v_prediction", "sample", "flow_prediction"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def levels(value: float, x: torch.Tensor) -> torch.Tensor:
    return numbers(*[value] * len(x))


def test_posterior_mean_is_that_of_many_weighted_draws() -> None:
    mixture = Mixture.random(3, (1, 1, 2), rng())
    x_0 = mixture.draw(400_000, rng(1))
    x, s, n = torch.tensor([0.3, -0.2], dtype=torch.float64).view(1, 1, 1, 2), numbers(0.6), numbers(0.8)
    likelihood = torch.exp(-0.5 * ((x - s * x_0) / n).square().sum(dim=(1, 2, 3)))
    expected = (column(likelihood, x_0) * x_0).sum(0, keepdim=True) / likelihood.sum()
    torch.testing.assert_close(mixture.posterior_mean(x, s, n), expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_mean_is_tweedie_s_with_the_score_by_autograd(shape: tuple[int, int, int]) -> None:
    mixture = Mixture.random(4, shape, rng())
    s, n = numbers(0.9, 0.5, 0.3, 2.0, 0.1), numbers(0.4, 0.8, 1.7, 0.1, 1.0)  # not variance preserving
    x = torch.randn(5, *shape, generator=rng(1), dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(mixture.log_density(x, s, n).sum(), x)
    found = mixture.posterior_mean(x.detach(), s, n)
    torch.testing.assert_close(found, (x.detach() + n**2 * score) / s)


def test_one_component_is_the_wiener_estimate() -> None:
    mean, variance = torch.full((1, 1, 2, 3), 0.7).double(), torch.full((1, 1, 2, 3), 0.25).double()
    mixture = Mixture(torch.ones(1, dtype=torch.float64), mean, variance)
    x = torch.randn(4, 1, 2, 3, generator=rng(), dtype=torch.float64)
    expected = 0.7 + 0.8 * 0.25 / (0.64 * 0.25 + 0.36) * (x - 0.8 * 0.7)
    torch.testing.assert_close(mixture.posterior_mean(x, levels(0.8, x), levels(0.6, x)), expected)


def test_limits_are_the_point_itself_and_the_mean_of_the_data() -> None:
    mixture = Mixture.random(3, (2, 3, 4), rng())
    x = mixture.draw(5, rng(1))
    torch.testing.assert_close(mixture.posterior_mean(x, levels(1.0, x), levels(1e-8, x)), x)
    mean = (mixture.weights.view(-1, 1, 1, 1) * mixture.means).sum(0).expand_as(x)
    torch.testing.assert_close(mixture.posterior_mean(x, levels(0.0, x), levels(1.0, x)), mean)


def test_density_integrates_to_one() -> None:
    mixture = Mixture.random(3, (1, 1, 1), rng())
    x = torch.linspace(-12, 12, 5001, dtype=torch.float64).view(-1, 1, 1, 1)
    density = mixture.log_density(x, levels(0.8, x), levels(0.6, x)).exp()
    assert float(torch.trapezoid(density, x.flatten())) == pytest.approx(1, abs=1e-9)


def test_draws_have_the_mixture_s_moments() -> None:
    mixture = Mixture.random(3, (1, 2, 2), rng())
    drawn, w = mixture.draw(100_000, rng(1)), mixture.weights.view(-1, 1, 1, 1)
    mean = (w * mixture.means).sum(0)
    variance = (w * (mixture.variances + mixture.means**2)).sum(0) - mean**2
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.02, atol=0)
    assert torch.equal(drawn, mixture.draw(100_000, rng(1)))


@pytest.mark.parametrize("kind", KINDS)
def test_the_denoiser_says_the_same_in_every_kind(kind: Kind) -> None:
    mixture = Mixture.random(3, (2, 3, 4), rng())
    x, t = torch.randn(5, 2, 3, 4, generator=rng(1)).double(), torch.linspace(0.1, 1, 5, dtype=torch.float64)
    s, n = column(SCHEDULE.signal(t), x), column(SCHEDULE.noise(t), x)
    truth = mixture.posterior_mean(x, s, n)
    prediction = MixtureDenoiser(mixture, SCHEDULE, kind)(x, t)
    assert prediction.kind == kind
    torch.testing.assert_close(prediction.data, truth)
    torch.testing.assert_close(prediction.epsilon, (x - s * truth) / n)


@pytest.mark.parametrize("weights", [[0.5, 0.6], [1.5, -0.5], [1.0, 0.0]])
def test_weights_that_are_no_law_are_refused(weights: list[float]) -> None:
    means = torch.zeros(2, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="sum to 1"):
        Mixture(torch.tensor(weights, dtype=torch.float64), means, means + 1)


def test_negative_variances_are_refused() -> None:
    means = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="not negative"):
        Mixture(torch.ones(1, dtype=torch.float64), means, means - 1)


PATHS = [RayPath(), RayPath(sigma=0.4), RayPath(sigma=1.0), PairedDiffusionPath()]


def on_a_path(path: Path, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, Coefficients]:
    """Points of a path that have a gradient, their target means and coefficients, each sample at its own time."""
    mu, x = (torch.randn(shape, generator=rng(i), dtype=torch.float64) for i in (4, 5))
    c = path.coefficients(SCHEDULE, torch.linspace(0.2, 0.9, shape[0], dtype=torch.float64))
    return x.requires_grad_(), mu, c


@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize("shape", [(5, 2, 3, 4), (3, 3, 3, 3)], ids=["distinct", "square"])
def test_data_and_score_on_any_path_satisfy_tweedie(path: Path, shape: tuple[int, int, int, int]) -> None:
    mixture = Mixture.random(3, shape[1:], rng())
    x, mu, c = on_a_path(path, shape)
    a, b = column(c.data, x), column(torch.hypot(c.mean, c.noise), x)
    (score,) = torch.autograd.grad(mixture.log_density(x, a, b).sum(), x)
    torch.testing.assert_close(mixture.score_on(x.detach(), c), score)
    torch.testing.assert_close(mixture.data_on(x.detach(), c), (x.detach() + b**2 * score) / a)
    rest, noise = x - column(c.mean, x) * mu, column(c.noise, x)
    (score,) = torch.autograd.grad(mixture.log_density(rest, a, noise).sum(), x)
    torch.testing.assert_close(mixture.score_on(x.detach(), c, mu), score)
    torch.testing.assert_close(mixture.data_on(x.detach(), c, mu), (rest.detach() + noise**2 * score) / a)


@pytest.mark.parametrize("known", [False, True], ids=["mu unknown", "mu given"])
def test_data_on_a_path_is_that_of_a_quadrature_over_everything_unknown(known: bool) -> None:
    mixture, x, mu = Mixture.random(2, (1, 1, 1), rng()), numbers(0.4), numbers(-0.7)
    c = Coefficients(*(torch.tensor([v], dtype=torch.float64) for v in (0.6, 0.5, 0.3)))
    line = torch.linspace(-6, 6, 1201, dtype=torch.float64)
    x_0, m = torch.meshgrid(line, torch.full((1,), -0.7, dtype=torch.float64) if known else line, indexing="ij")
    zero, one = torch.zeros(len(line), 1, 1, 1, dtype=torch.float64), torch.ones(len(line), 1, 1, 1).double()
    prior = mixture.log_density(line.view(-1, 1, 1, 1), one, zero).view(-1, 1) - m**2 / 2
    joint = torch.exp(prior - 0.5 * ((0.4 - 0.6 * x_0 - 0.5 * m) / 0.3) ** 2)
    expected = (joint * x_0).sum() / joint.sum()
    found = mixture.data_on(x, c, mu if known else None)
    torch.testing.assert_close(found.squeeze(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", [RayPath(), PairedDiffusionPath()], ids=str)
def test_without_path_noise_the_data_given_the_target_mean_is_what_the_point_was_made_of(path: Path) -> None:
    mixture = Mixture.random(3, (2, 3, 4), rng())
    _, mu, c = on_a_path(path, (5, 2, 3, 4))
    x_0 = mixture.draw(5, rng(6))
    torch.testing.assert_close(mixture.data_on(interpolate(c, x_0, mu, torch.zeros_like(mu)), c, mu), x_0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_denoiser_on_a_path_is_the_mean_given_the_point(path: Path, kind: Kind) -> None:
    mixture = Mixture.random(3, (2, 3, 4), rng())
    x, _, c = on_a_path(path, (5, 2, 3, 4))
    for schedule in (SCHEDULE, FlowSchedule()):
        prediction = MixtureDenoiser(mixture, schedule, kind).on_path(x.detach(), c)
        torch.testing.assert_close(prediction.data, mixture.data_on(x.detach(), c))
        b = column(torch.hypot(c.mean, c.noise), x)
        torch.testing.assert_close(prediction.epsilon, -b * mixture.score_on(x.detach(), c))


def test_noise_is_zero_at_clean_data_and_the_point_at_pure_noise() -> None:
    mixture = Mixture.random(3, (2, 3, 4), rng())
    x = mixture.draw(5, rng(1))
    clean, pure = torch.zeros(5, dtype=torch.float64), torch.full((5,), torch.pi / 2, dtype=torch.float64)
    for kind in ("v_prediction", "flow_prediction"):
        denoiser = MixtureDenoiser(mixture, SCHEDULE, kind)
        torch.testing.assert_close(denoiser.at_angle(x, clean).epsilon, torch.zeros_like(x))
        torch.testing.assert_close(denoiser.at_angle(x, clean).data, x)
        torch.testing.assert_close(denoiser.at_angle(x, pure).epsilon, x)


def test_pure_noise_is_refused_for_epsilon() -> None:
    mixture, x = Mixture.random(3, (2, 3, 4), rng()), torch.randn(2, 2, 3, 4, generator=rng(), dtype=torch.float64)
    with pytest.raises(ValueError, match="needs v_prediction"):
        MixtureDenoiser(mixture, FlowSchedule(), "epsilon")(x, torch.ones(2, dtype=torch.float64))
