"""Time samplers: the laws that they claim, and their reproducibility."""

import pytest
import torch

from raystill.flow.paths import PairedDiffusionPath, Path, RayPath
from raystill.flow.schedules import DiffusionSchedule
from raystill.flow.times import SamplingTimes, TimeSampler, UniformTimes
from raystill.models.fresh import stable_diffusion_scheduler

SCHEDULE = DiffusionSchedule.from_alphas(stable_diffusion_scheduler("epsilon").alphas_cumprod)
PATHS: list[Path] = [RayPath(), RayPath(sigma=0.3), PairedDiffusionPath()]
SAMPLERS: list[TimeSampler] = [UniformTimes(), SamplingTimes(), SamplingTimes(steps=1), SamplingTimes(steps=4)]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
def test_draws_are_a_function_of_the_generator(sampler: TimeSampler) -> None:
    before = torch.get_rng_state()
    first, again, other = (sampler.draw(64, RayPath(), SCHEDULE, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.t, again.t)
    assert sampler == SamplingTimes(steps=1) or not torch.equal(first.t, other.t)
    assert first.t.shape == first.weight.shape == (64,)
    assert first.t.dtype == first.weight.dtype == torch.float64
    assert bool(((first.t >= 0) & (first.t <= 1)).all())
    assert torch.equal(before, torch.get_rng_state())


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


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("path", PATHS, ids=str)
def test_sampling_times_have_only_the_stock_signal_to_noise_ratios(path: Path, steps: int) -> None:
    draw = SamplingTimes(steps=steps).draw(2000, path, SCHEDULE, rng())
    angles = path.coefficients(SCHEDULE, draw.t.unique()).angle
    stock = SCHEDULE.angle(SCHEDULE.sampling_times(steps)[:-1]).flip(0)
    end = path.coefficients(SCHEDULE, torch.ones(1, dtype=torch.float64)).angle
    # The ray path ends a little before the teacher's start (s_1 is not 0): its end stands for what lies beyond.
    torch.testing.assert_close(angles, torch.minimum(stock, end), rtol=0, atol=1e-9)
    assert bool((draw.weight == 1).all())


def test_sampling_times_of_eight_steps_hold_those_of_fewer() -> None:
    of = {n: set(SamplingTimes(steps=n).draw(500, RayPath(), SCHEDULE, rng()).t.tolist()) for n in (1, 2, 4, 8)}
    assert of[1] < of[2] < of[4] < of[8]
    assert len(of[8]) == 8


@pytest.mark.parametrize(("steps", "share"), [(1, 1.0), (4, 0.3), (8, 0.3), (4, 0.9)])
def test_the_start_gets_its_share(steps: int, share: float) -> None:
    sampler = SamplingTimes(steps=steps, start_share=0.3 if steps == 1 else share)
    t = sampler.draw(40_000, PairedDiffusionPath(), SCHEDULE, rng()).t
    assert float((t > 1 - 1e-9).double().mean()) == pytest.approx(share, abs=0.01)
    _, counts = t.unique(return_counts=True)
    for count in counts[:-1].tolist():
        assert count / 40_000 == pytest.approx((1 - share) / (steps - 1), abs=0.01)
