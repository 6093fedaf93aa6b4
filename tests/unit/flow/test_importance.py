"""Learned laws of times: unbiased whatever they have learned, and near the best law once they have."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.efficiency import midpoints, oracle, relative_second_moment
from raystill.flow.importance import BatchLaw, GridTimes, LearnedTimes, SecondMomentTimes
from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.randomness import RandomStream
from raystill.flow.regressor import TimeNetwork
from raystill.flow.schedules import FlowSchedule
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, TimeSampler, UniformTimes, UShapedTimes

SCHEDULE = FlowSchedule()
PATH = PairedDiffusionPath()
CHANNELS = 2
V = midpoints(1000)
LEARNED: list[LearnedTimes] = [
    SecondMomentTimes(), SecondMomentTimes(instance=True, bins=7),
    GridTimes(), GridTimes(instance=False, knots=4),
    SteinTimes(), SteinTimes(instance=False, components=3),
]  # fmt: skip
BASES = [UniformTimes(), LogitNormalTimes(), UShapedTimes(), SamplingTimes(student_steps=4)]


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


def name(value: object) -> str:
    return type(value).__name__


def moved(times: LearnedTimes, rows: int, seed: int = 0, size: float = 0.7) -> Tensor:
    """Outputs of a network that has learned something, another thing for each sample."""
    start = times.start().float()
    return start + size * rng(seed).normal((rows, len(start)))


def instances(count: int, seed: int) -> tuple[Tensor, Tensor]:
    return tuple(rng(seed + i).normal((count, CHANNELS, 4, 4)) for i in (0, 10**6))  # type: ignore[return-value]


def teach(
    times: LearnedTimes,
    xi_square: Callable[[Tensor, Tensor], Tensor],
    steps: int = 300,
    count: int = 32,
    scatter: float = 0.5,
    seed: int = 0,
) -> TimeNetwork:
    """Train on squared gradients whose expectation at (t, x_0) is known."""
    torch.manual_seed(seed)
    network = times.network(CHANNELS)
    optimizer = torch.optim.AdamW(network.parameters(), lr=times.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(steps):
        number = 1000 * seed + step
        x_0, mu = instances(count, number)
        law = BatchLaw(times, network(times.features(x_0, mu)), step)
        draw = law.draw(count, PATH, SCHEDULE, rng(number))
        squares = xi_square(draw.t, x_0) * torch.exp(scatter * rng(number).normal((count,)))
        optimizer.zero_grad()
        torch.stack(list(law.losses(draw, squares).values())).sum().backward()
        optimizer.step()
    return network


def density(times: LearnedTimes, network: TimeNetwork, x_0: Tensor, mu: Tensor) -> Tensor:
    with torch.no_grad():
        return times.density(network(times.features(x_0, mu)), V.expand(len(x_0), -1))


def steep(t: Tensor, x_0: Tensor) -> Tensor:
    """A law of time alone whose oracle ratio is a third."""
    return torch.exp(-14 * t) + 1e-3


def two_modes(t: Tensor, x_0: Tensor) -> Tensor:
    """Squares whose root, the best law, has a narrow mode and a wide one of other mass."""
    first, second = torch.exp(-((t - 0.2) ** 2) / 0.0128), torch.exp(-((t - 0.75) ** 2) / 0.0288)
    return (first + second / 2 + 0.03) ** 2


def tilted(t: Tensor, x_0: Tensor) -> Tensor:
    """A law that rises with t for bright instances and falls for dark ones."""
    slope = 6 * torch.tanh(4 * x_0.mean(dim=(1, 2, 3)).double())
    return torch.exp((slope if t.ndim == 1 else slope[:, None]) * t)


@pytest.mark.parametrize("times", LEARNED, ids=name)
def test_what_is_learned_has_a_density_that_integrates_to_one(times: LearnedTimes) -> None:
    v = midpoints(50_000).expand(3, -1)
    raw = times.law(moved(times, 3).double()).density(v)
    torch.testing.assert_close(raw.mean(1), torch.ones(3).double(), rtol=2e-3, atol=0)
    torch.testing.assert_close(times.density(moved(times, 3), v), 0.9 * raw + 0.1)
    assert not torch.allclose(raw[0], raw[1])


@pytest.mark.parametrize("times", LEARNED, ids=name)
def test_an_untrained_law_is_the_objective_s(times: LearnedTimes) -> None:
    outputs = times.network(CHANNELS)(times.features(*instances(2, 0)))
    found = times.density(outputs, V.expand(2, -1))
    if isinstance(times, SteinTimes):
        assert float((found - 1).abs().mean()) < 0.25
    else:
        torch.testing.assert_close(found, torch.ones_like(found))


@pytest.mark.parametrize("times", LEARNED, ids=name)
def test_draws_follow_the_density(times: LearnedTimes) -> None:
    # Kolmogorov and Smirnov's distance of independent draws; 1.63 / sqrt(n) is exceeded once in a hundred.
    count = 20_000
    law = times.law(moved(times, 1).double().expand(count, -1))
    draws = law.quantile(rng(3).uniform(count)).sort().values
    fine = midpoints(100_000)
    distribution = times.law(moved(times, 1).double()).density(fine[None])[0].cumsum(0) / 100_000
    at = distribution[(draws * 100_000).long().clamp(max=99_999)]
    empirical = torch.arange(1, count + 1, dtype=torch.float64) / count
    assert float((at - empirical).abs().max()) < 1.63 / count**0.5


@pytest.mark.parametrize("times", LEARNED, ids=name)
def test_every_sample_is_drawn_from_its_own_law(times: LearnedTimes) -> None:
    rows = moved(times, 2, seed=4)
    shares = torch.tensor([0.3, 0.3], dtype=torch.float64)
    both = times.law(rows.double()).quantile(shares)
    for i in range(2):
        torch.testing.assert_close(both[i : i + 1], times.law(rows[i : i + 1].double()).quantile(shares[:1]))
    assert float(both[0]) != float(both[1])


@pytest.mark.parametrize("base", BASES, ids=name)
@pytest.mark.parametrize("times", [SecondMomentTimes(), GridTimes(), SteinTimes()], ids=name)
def test_weights_are_unbiased_for_the_objective_and_bounded(times: LearnedTimes, base: UniformTimes) -> None:
    times = replace(times, base=base, warmup_steps=0)
    outputs, count = moved(times, 16).repeat(40, 1), 640
    laws = [BatchLaw(times, outputs, 0).draw(count, PATH, SCHEDULE, rng(seed)) for seed in range(10)]
    plain = [base.draw(count, PATH, SCHEDULE, rng(seed)) for seed in range(10)]
    t, weight = torch.cat([d.t for d in laws]), torch.cat([d.weight for d in laws])
    truth = torch.cat([d.t for d in plain])
    assert 0 < float(weight.min()) < 0.9
    assert 1.2 < float(weight.max()) <= 1 / times.delta
    assert float(weight.mean()) == pytest.approx(1, abs=0.02)
    tests: list[Callable[[Tensor], Tensor]] = [
        lambda x: x, lambda x: (6 * x).cos(), lambda x: (x > 0.8).double(), lambda x: (-4 * x).exp(),
    ]  # fmt: skip
    for f in tests:
        assert float((weight * f(t)).mean()) == pytest.approx(float(f(truth).mean()), abs=0.025)
    # For every sample too, though each has another law.
    own = (weight * t).view(-1, 16).mean(0)
    torch.testing.assert_close(own, truth.mean().expand(16), rtol=0, atol=0.12)


@pytest.mark.parametrize("times", LEARNED, ids=name)
def test_the_warm_up_draws_from_the_objective(times: LearnedTimes) -> None:
    times = replace(times, base=UShapedTimes(), warmup_steps=5)
    for step, warming in ((0, True), (4, True), (5, False)):
        law = BatchLaw(times, moved(times, 9), step)
        assert isinstance(law, TimeSampler)
        draw = law.draw(9, PATH, SCHEDULE, rng(2))
        assert torch.equal(draw.t, UShapedTimes().draw(9, PATH, SCHEDULE, rng(2)).t) == warming
        assert bool((draw.weight == 1).all()) == warming
        torch.testing.assert_close(draw.t, UShapedTimes().quantile(draw.quantile, PATH, SCHEDULE))


@pytest.mark.parametrize(
    "times", [SecondMomentTimes(), GridTimes(instance=False), GridTimes(), SteinTimes(instance=False)], ids=str
)
def test_a_law_of_time_comes_near_the_oracle(times: LearnedTimes) -> None:
    network = teach(times, steep)
    square = steep(V, V)
    best = oracle(square)
    assert best.ratio == pytest.approx(0.342, abs=1e-3)
    found = density(times, network, *instances(64, 77))
    assert relative_second_moment(square, found) < 1.2 * best.ratio
    truth = (1 - times.delta) * best.density + times.delta
    assert float((found - truth).abs().mean()) / 2 < 0.08  # total variation; half of uniform's is 0.45


@pytest.mark.parametrize("seed", range(3))
def test_stein_times_find_two_modes_with_their_masses(seed: int) -> None:
    times = SteinTimes()
    network = teach(times, two_modes, seed=seed)
    best = oracle(two_modes(V, V))
    assert best.ratio == pytest.approx(0.656, abs=1e-3)
    with torch.no_grad():
        found = times.law(network(times.features(*instances(64, 77))).double()).density(V.expand(64, -1))
    assert float((found - best.density).abs().mean()) / 2 <= 0.05  # total variation
    assert relative_second_moment(two_modes(V, V), 0.9 * found + 0.1) < 0.68


def test_a_law_is_the_root_of_the_mean_square() -> None:
    # Squares of one mean and unequal scatter: sqrt(E[y]) does not tell the halves apart, sqrt(E[y^2]) does.
    def scattered(t: Tensor, x_0: Tensor) -> Tensor:
        heads = (rng(int(1e6 * float(t[0]))).uniform(len(t)) < 0.1).double()
        return torch.where(t < 0.5, 1.0, 10 * heads)

    times = SecondMomentTimes(bins=2, learning_rate=0.01)
    for exponent, ratio in ((2, 10**0.5), (1, 1.0)):
        network = teach(times, lambda t, x_0, e=exponent: scattered(t, x_0) ** e, steps=400, scatter=0.0)  # type: ignore[misc]
        found = density(times, network, *instances(1, 0))[0]
        high, low = ((float(found[i]) - 0.1) / 0.9 for i in (-1, 0))
        assert high / low == pytest.approx(ratio, rel=0.35)


@pytest.mark.parametrize("times", [GridTimes(), SteinTimes()], ids=name)
def test_laws_of_instances_beat_the_oracle_of_time_alone(times: LearnedTimes) -> None:
    network = teach(times, tilted, steps=400)
    x_0, mu = instances(200, 77)
    square = tilted(V.expand(200, -1), x_0)
    square = square / square.mean(1, keepdim=True)  # every instance counts alike
    found = density(times, network, x_0, mu)
    alone = oracle(square.mean(0)).ratio
    each = float(torch.stack([torch.tensor(oracle(row).ratio) for row in square]).mean())
    assert each < alone
    assert relative_second_moment(square, found) < 0.5 * (each + alone)


def test_a_discrete_objective_is_reweighted_too() -> None:
    times = GridTimes(base=SamplingTimes(student_steps=4), instance=False)

    def rare(t: Tensor, x_0: Tensor) -> Tensor:
        return torch.where(t > 0.9, 9.0, 1.0).double()

    network = teach(times, rare, steps=200)
    outputs = network(times.features(*instances(4000, 0)))
    draw = BatchLaw(times, outputs, 1000).draw(4000, PATH, SCHEDULE, rng())
    start = (draw.t > 0.9).double()
    best = 0.9 * (0.3 * 3) / (0.3 * 3 + 0.7) + 0.1 * 0.3
    assert float(start.mean()) == pytest.approx(best, abs=0.05)
    assert float((draw.weight * start).mean()) == pytest.approx(0.3, abs=0.005)


def test_the_stein_discrepancy_falls_while_the_proposal_learns() -> None:
    times = SteinTimes(instance=False)
    features = times.features(*instances(1, 5))
    network = teach(times, two_modes, steps=300)
    outputs = network(features).detach().double()
    untrained = torch.cat([outputs[:, : times.knots], times.start().double()[None, times.knots :]], 1)
    before, after = (float(times.discrepancy(o)) for o in (untrained, outputs))
    assert 0 <= after < before / 10
    assert after < 0.01


def test_averaged_gradients_keep_ranks_equal() -> None:
    times = SteinTimes()
    networks = []
    for _ in range(2):
        torch.manual_seed(3)
        networks.append(times.network(CHANNELS))
    optimizers = [torch.optim.AdamW(n.parameters(), lr=0.02) for n in networks]
    for step in range(5):
        for rank, network in enumerate(networks):
            x_0, mu = instances(8, 100 * rank + step)
            law = BatchLaw(times, network(times.features(x_0, mu)), 200)
            draw = law.draw(8, PATH, SCHEDULE, rng(10 * step + rank))
            network.zero_grad()
            torch.stack(list(law.losses(draw, steep(draw.t, x_0)).values())).sum().backward()
        for pair in zip(*(n.parameters() for n in networks), strict=True):
            mean = torch.stack([p.grad for p in pair if p.grad is not None]).mean(0)
            for p in pair:
                p.grad = mean.clone()
        for optimizer in optimizers:
            optimizer.step()
    x_0, mu = instances(4, 0)
    outputs = [n(times.features(x_0, mu)) for n in networks]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], times.start().float())


@pytest.mark.parametrize("base", BASES, ids=name)
@pytest.mark.parametrize("times", [SecondMomentTimes(), GridTimes(), SteinTimes()], ids=name)
def test_nothing_is_read_from_the_device(times: LearnedTimes, base: UniformTimes) -> None:
    # The meta device has no numbers to read: a host-device synchronisation raises there.
    times = replace(times, base=base, warmup_steps=5)
    device = torch.device("meta")
    network = times.network(CHANNELS).to(device)
    x_0, mu = (x.to(device) for x in instances(6, 0))
    for step in (0, 10):
        law = BatchLaw(times, network(times.features(x_0, mu)), step)
        draw = law.draw(6, PATH, SCHEDULE, rng())
        assert draw.t.device.type == draw.weight.device.type == "meta"
        parts = law.losses(draw, x_0.square().mean(dim=(1, 2, 3)))
        torch.stack(list(parts.values())).sum().backward()


def test_the_relative_second_moment_is_that_of_a_weighted_gradient() -> None:
    # A linear model with features of unit length: loss r^2 and gradient 2 r phi, so xi^2 is proportional to the loss.
    times = GridTimes(instance=False)
    network = teach(times, steep, scatter=0.0)
    count = 100_000  # the ratio of moments has a standard error of 1.5 % then
    outputs = network(times.features(*instances(1, 0))).expand(count, -1)
    law = BatchLaw(times, outputs, 1000)
    draws = {
        "learned": law.draw(count, PATH, SCHEDULE, rng()),
        "uniform": UniformTimes().draw(count, PATH, SCHEDULE, rng()),
    }
    moments = {}
    for which, draw in draws.items():
        phi = torch.stack([draw.t.cos(), draw.t.sin()], 1)
        residual = steep(draw.t, draw.t).sqrt() * rng(1).normal((count,), torch.float64)
        gradient = draw.weight[:, None] * 2 * residual[:, None] * phi
        moments[which] = float(gradient.square().sum(1).mean())
    found = density(times, network, *instances(1, 0))[0]
    assert moments["learned"] / moments["uniform"] == pytest.approx(
        relative_second_moment(steep(V, V), found), rel=0.05
    )


def test_a_batch_of_one_cannot_teach() -> None:
    law = BatchLaw(GridTimes(), moved(GridTimes(), 1), 0)
    draw = law.draw(1, RayPath(), SCHEDULE, rng())
    with pytest.raises(UserError, match=r"training\.lane_size is 1; write 2 or more"):
        law.losses(draw, torch.ones(1))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: GridTimes(delta=0.0), "delta is 0.0, the share of draws"),
        (lambda: GridTimes(learning_rate=0.0), "learning_rate 0.0"),
        (lambda: GridTimes(knots=3), "3 knots"),
        (lambda: SecondMomentTimes(bins=1), "1 bins"),
        (lambda: SteinTimes(components=0), "components of Stein times is 0; write at least 1"),
        (lambda: SteinTimes(bandwidth=0.0), "bandwidth of Stein times is 0"),
        (lambda: SteinTimes(base=UShapedTimes(importance=0.1)), "method.times.base.importance=null"),
    ],
)
def test_settings_without_a_law_are_refused(make: type, found: str) -> None:
    with pytest.raises(UserError, match=found):
        make()
