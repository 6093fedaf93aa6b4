import math

import pytest
import scipy.linalg
import torch
from torch import Tensor

from raystill.config.errors import UserError
from raystill.evaluation.distances import (
    Gaussian,
    decode,
    discrepancy,
    encode,
    frechet,
    frechet_between,
    kernel_distance,
    statistics,
)


def normal(count: int, size: int, seed: int) -> Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gaussian(mean: Tensor, covariance: Tensor, count: int = 1000) -> Gaussian:
    return Gaussian(mean=mean.double(), covariance=covariance.double(), count=count)


def covariance(size: int, seed: int) -> Tensor:
    factor = normal(size, size, seed)
    return factor @ factor.T / size


def test_statistics_are_those_of_torch() -> None:
    features = normal(50, 7, seed=1).float()
    found = statistics(features)
    assert found.count == 50
    assert found.mean.dtype == torch.float64
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(features.double().T))


def test_a_shift_counts_squared() -> None:
    shared = covariance(5, seed=2)
    shift = torch.tensor([1.0, -2.0, 0.0, 0.5, 3.0])
    a, b = gaussian(torch.zeros(5), shared), gaussian(shift, shared)
    assert frechet_between(a, b) == pytest.approx(1 + 4 + 0.25 + 9, abs=1e-12)


def test_commuting_covariances_have_a_closed_form() -> None:
    rotation, _ = torch.linalg.qr(normal(6, 6, seed=3))
    variances_a = torch.tensor([1.0, 4.0, 0.0, 2.0, 1e-6, 9.0], dtype=torch.float64)
    variances_b = torch.tensor([3.0, 1.0, 2.0, 0.0, 1e-2, 9.0], dtype=torch.float64)
    a = gaussian(torch.zeros(6), rotation @ variances_a.diag() @ rotation.T)
    b = gaussian(torch.zeros(6), rotation @ variances_b.diag() @ rotation.T)
    expected = (variances_a.sqrt() - variances_b.sqrt()).square().sum().item()
    assert frechet_between(a, b) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (7, 7), (2, 3)])
def test_with_fewer_pictures_than_features_the_shorter_way_gives_the_same(n: int, m: int) -> None:
    a, b = normal(n, 8, seed=7), normal(m, 8, seed=8) * 2 + 1
    expected = frechet_between(statistics(a), statistics(b), allow_few=True)
    assert frechet(a, b, allow_few=True) == pytest.approx(
        expected, rel=1e-7
    )  # the roots of a singular covariance are the less exact ones


def test_agrees_with_the_matrix_root_where_covariances_do_not_commute() -> None:
    a, b = gaussian(normal(1, 8, seed=4)[0], covariance(8, seed=5)), gaussian(torch.zeros(8), covariance(8, seed=6))
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy()).real
    expected = a.mean.square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * root.trace()
    assert frechet_between(a, b) == pytest.approx(float(expected), rel=1e-9)
    assert frechet_between(b, a) == pytest.approx(frechet_between(a, b), rel=1e-9)


def test_scaling_features_scales_the_distance_squared() -> None:
    a, b = normal(90, 9, seed=7), 1.5 * normal(80, 9, seed=8) + 0.2
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b), rel=1e-10)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_set_is_at_no_distance_from_itself(scale: float) -> None:
    features = scale * normal(200, 32, seed=9)
    assert abs(frechet(features, features)) < 1e-12 * scale**2 * 32


def test_rank_deficiency_does_not_lose_digits() -> None:
    few = normal(10, 32, seed=10)
    assert abs(frechet(few, few, allow_few=True)) < 1e-11


def test_too_few_pictures_are_refused() -> None:
    enough, few = normal(33, 32, seed=11), normal(32, 32, seed=12)
    assert frechet(enough, enough) == pytest.approx(0, abs=1e-11)
    with pytest.raises(UserError, match=r"found 32 pictures .* on 32 features.*kernel distance"):
        frechet(enough, few)


def test_features_of_two_networks_are_refused() -> None:
    with pytest.raises(UserError, match="lengths 3 and 4"):
        frechet_between(statistics(normal(9, 3, seed=0)), statistics(normal(9, 4, seed=0)))


def test_features_that_are_not_finite_are_refused() -> None:
    features = normal(9, 3, seed=0)
    features[4, 1] = math.nan
    with pytest.raises(UserError, match=r"1 of 9 pictures .* first at 4"):
        statistics(features)
    with pytest.raises(UserError, match="not finite"):
        kernel_distance(features, normal(9, 3, seed=1), subset_size=5)


def test_one_picture_has_no_covariance() -> None:
    with pytest.raises(UserError, match="found 1 pictures"):
        statistics(normal(1, 3, seed=0))


def test_statistics_survive_storing_and_know_their_network() -> None:
    kept = statistics(normal(40, 6, seed=13))
    found = decode(encode(kept, "alexnet"), "alexnet")
    assert found.count == 40
    assert torch.equal(found.mean, kept.mean)
    assert torch.equal(found.covariance, kept.covariance)
    with pytest.raises(UserError, match=r"alexnet\.mean.*'inception'"):
        decode(encode(kept, "alexnet"), "inception")
    with pytest.raises(UserError, match="unreadable"):
        decode(b"not safetensors", "alexnet")


def test_discrepancy_is_the_sum_over_pairs() -> None:
    x, y = normal(4, 3, seed=14), normal(5, 3, seed=15)

    def kernel(p: Tensor, q: Tensor) -> float:
        return float((p @ q / 3 + 1) ** 3)

    within_x = sum(kernel(x[i], x[j]) for i in range(4) for j in range(4) if i != j) / 12
    within_y = sum(kernel(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(kernel(p, q) for p in x for q in y) / 20
    assert float(discrepancy(x, y)) == pytest.approx(within_x + within_y - 2 * between, rel=1e-12)


def test_agrees_with_torchmetrics() -> None:
    # What torchmetrics 1.9.0 gives on these features: its Frechet distance and its polynomial-kernel discrepancy.
    a, b = (
        normal(400, 16, seed=3),
        normal(300, 16, seed=4) @ torch.linspace(0.5, 2, 16, dtype=torch.float64).diag() + 0.3,
    )
    assert frechet(a, b) == pytest.approx(6.73404054211, rel=1e-9)
    assert float(discrepancy(a[:300], b)) == pytest.approx(0.768181294304, rel=1e-9)


def test_kernel_distance_is_unbiased_and_sees_a_shift() -> None:
    a, b = normal(600, 8, seed=16), normal(600, 8, seed=17)
    same = kernel_distance(a, b, subsets=30, subset_size=100, seed=1)
    assert abs(same.mean) < 3 * same.std
    moved = kernel_distance(a, b + 1, subsets=30, subset_size=100, seed=1)
    assert moved.mean > 10 * same.std
    assert moved.std > 0


def test_kernel_distance_repeats_with_its_seed_only() -> None:
    a, b = normal(60, 4, seed=18), normal(70, 4, seed=19)
    first = kernel_distance(a, b, subsets=5, subset_size=20, seed=3)
    assert kernel_distance(a, b, subsets=5, subset_size=20, seed=3) == first
    assert kernel_distance(a, b, subsets=5, subset_size=20, seed=4) != first


def test_a_subset_of_everything_is_the_plain_estimate() -> None:
    a, b = normal(30, 4, seed=20), normal(30, 4, seed=21)
    found = kernel_distance(a, b, subsets=1, subset_size=30)
    assert found.mean == pytest.approx(float(discrepancy(a, b)), rel=1e-12)
    assert found.std == 0


@pytest.mark.parametrize(("subsets", "subset_size"), [(0, 10), (3, 1), (3, 31)])
def test_subsets_that_cannot_be_drawn_are_refused(subsets: int, subset_size: int) -> None:
    with pytest.raises(UserError, match="sets of 30 and 40"):
        kernel_distance(normal(30, 4, seed=0), normal(40, 4, seed=1), subsets=subsets, subset_size=subset_size)
