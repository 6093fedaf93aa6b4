"""Fixed laws of times: the laws that they claim, their weights, and their reproducibility."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raystill.config.errors import UserError
from raystill.flow.paths import PairedDiffusionPath, Path, RayPath
from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, FlowSchedule, Schedule
from raystill.flow.times import (
    DensityTimes,
    FixedTimes,
    LogitNormalTimes,
    SamplingTimes,
    TimeSampler,
    UniformTimes,
    UShapedTimes,
    defended,
)
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
PATHS: list[Path] = [RayPath(), RayPath(sigma=0.3), PairedDiffusionPath()]
DENSITIES: list[DensityTimes] = [
    LogitNormalTimes(), LogitNormalTimes(mean=0.7, std=0.5), UShapedTimes(), UShapedTimes(steepness=0.5),
]  # fmt: skip
IMPORTANCE: list[DensityTimes] = [
    LogitNormalTimes(importance=0.1), LogitNormalTimes(mean=-1.0, std=2.0, importance=0.3),
    UShapedTimes(importance=0.05),
]  # fmt: skip
FIXED: list[FixedTimes] = [
    UniformTimes(), SamplingTimes(), SamplingTimes(student_steps=1), SamplingTimes(student_steps=4),
    *DENSITIES, *IMPORTANCE,
]  # fmt: skip


def rng(seed: int = 0) -> RandomStream:
    return RandomStream.of(seed)


def cells(count: int) -> Tensor:
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


@pytest.mark.parametrize("sampler", FIXED, ids=str)
def test_draws_are_a_function_of_the_generator(sampler: TimeSampler) -> None:
    assert isinstance(sampler, TimeSampler)
    before = torch.get_rng_state()
    first, again, other = (sampler.draw(64, RayPath(), SCHEDULE, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.t, again.t)
    assert sampler == SamplingTimes(student_steps=1) or not torch.equal(first.t, other.t)
    assert first.t.shape == first.weight.shape == first.quantile.shape == (64,)
    assert first.t.dtype == first.weight.dtype == first.quantile.dtype == torch.float64
    assert bool(((first.t >= 0) & (first.t <= 1)).all())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("law", FIXED, ids=str)
def test_weights_are_the_inverse_of_the_density_relative_to_the_objective(law: FixedTimes) -> None:
    draw = law.draw(64, RayPath(), SCHEDULE, rng())
    torch.testing.assert_close(draw.weight * law.relative_density(draw.quantile), torch.ones_like(draw.t))
    torch.testing.assert_close(law.objective.quantile(draw.quantile, RayPath(), SCHEDULE), draw.t)


@pytest.mark.parametrize("count", [1, 7, 64])
def test_uniform_times_have_one_draw_in_each_bin_in_random_order(count: int) -> None:
    draw = UniformTimes().draw(count, RayPath(), SCHEDULE, rng())
    assert sorted((draw.t * count).floor().long().tolist()) == list(range(count))
    assert bool((draw.weight == 1).all())
    assert count < 10 or draw.t.tolist() != sorted(draw.t.tolist())


def test_every_place_of_a_uniform_batch_is_uniform() -> None:
    draws = torch.stack([UniformTimes().draw(8, RayPath(), SCHEDULE, rng(seed)).t for seed in range(3000)])
    torch.testing.assert_close(draws.mean(0), torch.full((8,), 0.5).double(), rtol=0, atol=0.025)
    torch.testing.assert_close(draws.var(0), torch.full((8,), 1 / 12).double(), rtol=0, atol=0.006)


@pytest.mark.parametrize("law", DENSITIES, ids=str)
def test_a_density_integrates_to_one_and_is_the_slope_of_the_distribution(law: DensityTimes) -> None:
    assert float(law.density(cells(20_000)).mean()) == pytest.approx(1, abs=1e-6)
    v = torch.linspace(0.01, 0.99, 50, dtype=torch.float64)
    step = 1e-6
    low, high = (law.quantile(v + d, RayPath(), SCHEDULE) for d in (-step, step))
    torch.testing.assert_close(law.density((low + high) / 2), 2 * step / (high - low), rtol=1e-6, atol=0)


@pytest.mark.parametrize("law", DENSITIES, ids=str)
def test_draws_follow_the_density(law: DensityTimes) -> None:
    draw = law.draw(4000, RayPath(), SCHEDULE, rng())
    assert bool((draw.weight == 1).all())
    torch.testing.assert_close(draw.t, law.quantile(draw.quantile, RayPath(), SCHEDULE))
    share = torch.histc(draw.t, 10, 0, 1) / 4000
    torch.testing.assert_close(share, law.density(cells(10_000)).view(10, -1).mean(1) / 10, rtol=0, atol=5e-4)


def test_the_laws_of_the_papers() -> None:
    u = torch.logit(LogitNormalTimes(mean=0.7, std=0.5).draw(4000, RayPath(), SCHEDULE, rng()).t)
    assert [float(u.mean()), float(u.std())] == pytest.approx([0.7, 0.5], abs=0.01)
    t = cells(100)
    law = UShapedTimes()
    # 2-rectified flow++ draws from exp(4 t) and mirrors half of the draws.
    expected = torch.exp(4 * t) + torch.exp(4 * (1 - t))
    torch.testing.assert_close(law.density(t) / law.density(t)[0], expected / expected[0])
    v = cells(64)
    torch.testing.assert_close(law.quantile(v, RayPath(), SCHEDULE), 1 - law.quantile(v, RayPath(), SCHEDULE).flip(0))


@pytest.mark.parametrize("law", IMPORTANCE, ids=str)
def test_an_importance_law_has_the_uniform_expectation_and_bounded_weights(law: DensityTimes) -> None:
    assert law.importance is not None
    draws = [law.draw(512, RayPath(), SCHEDULE, rng(seed)) for seed in range(40)]
    t, weight = torch.cat([d.t for d in draws]), torch.cat([d.weight for d in draws])
    assert 0 < float(weight.min()) < 1 < float(weight.max()) <= 1 / law.importance
    for f, expected in (
        (t, 0.5),
        (torch.ones_like(t), 1.0),
        ((7 * t).sin() ** 2, 0.4646194),
        ((t > 0.9).double(), 0.1),
    ):
        assert float((weight * f).mean()) == pytest.approx(expected, abs=0.012)
    assert float(t.std()) != pytest.approx(12**-0.5, abs=0.01)  # not uniform itself


@given(
    delta=st.floats(0.01, 0.99),
    power=st.floats(0.2, 5.0),
    share=st.floats(0, 1, exclude_max=True),
    seed=st.integers(0, 9),
)
def test_the_defensive_mixture_of_any_law_bounds_weights(delta: float, power: float, share: float, seed: int) -> None:
    shares = torch.tensor([share, 0.0, delta, 0.5], dtype=torch.float64)
    v, weight = defended(shares, delta, lambda s: s**power, lambda v: v.clamp(min=1e-12) ** (1 / power - 1) / power)
    assert bool(((v >= 0) & (v <= 1)).all())
    assert bool(((weight > 0) & (weight <= 1 / delta * (1 + 1e-12))).all())


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_sampling_times_have_only_the_stock_signal_to_noise_ratios(path: Path, steps: int) -> None:
    draw = SamplingTimes(student_steps=steps).draw(2000, path, SCHEDULE, rng())
    angles = path.coefficients(SCHEDULE, draw.t.unique()).angle
    stock = SCHEDULE.angle(SCHEDULE.sampling_times(steps)[:-1]).flip(0)
    end = path.coefficients(SCHEDULE, torch.ones(1, dtype=torch.float64)).angle
    # The ray path ends a little before the teacher's start (s_1 is not 0): its end stands for what lies beyond.
    torch.testing.assert_close(angles, torch.minimum(stock, end), rtol=0, atol=1e-9)
    assert bool((draw.weight == 1).all())


def test_sampling_times_of_eight_steps_hold_those_of_fewer() -> None:
    of = {n: set(SamplingTimes(student_steps=n).draw(500, RayPath(), SCHEDULE, rng()).t.tolist()) for n in (1, 2, 4, 8)}
    assert of[1] < of[2] < of[4] < of[8]
    assert len(of[8]) == 8


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (4, 0.3), (8, 0.3), (4, 0.9), (4, 1.0), (4, 0.0)])
def test_the_start_gets_its_share(steps: int, share: float) -> None:
    sampler = SamplingTimes(student_steps=steps, start_share=0.3 if steps == 1 else share)
    t = sampler.draw(40_000, PairedDiffusionPath(), SCHEDULE, rng()).t
    assert float((t > 1 - 1e-9).double().mean()) == pytest.approx(share, abs=0.01)
    times, counts = t.unique(return_counts=True)
    for count in counts[times < 1 - 1e-9].tolist():
        assert count / 40_000 == pytest.approx((1 - share) / (steps - 1), abs=0.01)


@pytest.mark.parametrize("schedule", [SCHEDULE, FlowSchedule(shift=3.0)], ids=["diffusion", "flow"])
@pytest.mark.parametrize("law", FIXED, ids=str)
def test_quantiles_rise_from_end_to_end(law: FixedTimes, schedule: Schedule) -> None:
    v = torch.linspace(0, 1 - 1e-9, 200, dtype=torch.float64)
    t = law.quantile(v, RayPath(sigma=0.1), schedule)
    assert bool((t.diff() >= 0).all())
    assert 0 <= float(t[0]) <= float(t[-1]) <= 1


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (lambda: LogitNormalTimes(std=0.0), "std of logit-normal times is 0"),
        (lambda: LogitNormalTimes(importance=0.0), "importance is 0.0, the share of draws"),
        (lambda: UShapedTimes(importance=1.0), "method.times.importance=0.1"),
        (lambda: UShapedTimes(steepness=-1.0), "steepness of U-shaped times is -1"),
        (lambda: SamplingTimes(student_steps=0), "has student_steps 0"),
        (lambda: SamplingTimes(start_share=1.5), "a share in"),
    ],
)
def test_settings_without_a_law_are_refused(make: type, found: str) -> None:
    with pytest.raises(UserError, match=found):
        make()
