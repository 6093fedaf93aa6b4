"""Which way adversaries and fake scores push: students towards what passes for real, adversaries away from them."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.given import given, prompted
from torch import Tensor, nn

from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, scaled_linear_alphas
from raystill.methods.add import ADD
from raystill.methods.adversary import ADVERSARY, Heads, mean_over_places, non_saturating, r1, told_apart, towards
from raystill.methods.dmd2 import DMD2, FAKE
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, TARGET, TEACHER, Batch, Distillation
from raystill.methods.teaching import Guidance

SD = DiffusionSchedule.from_alphas(scaled_linear_alphas())
SHAPE = (3, 2, 4, 5)
NONE = Guidance(low=1.0, high=1.0)


def rng(seed: int) -> RandomStream:
    return RandomStream.of(seed)


class Says(nn.Module):
    """Says the same data whatever it is asked, and has a part that passes on what it is asked."""

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.data, self.mid_block = nn.Parameter(data), nn.Identity()

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, *, return_dict: bool) -> tuple[Tensor, ...]:
        self.mid_block(x)
        return (self.data,)


class Scale(nn.Module):
    """A head that takes large numbers for real: a place's logit is a learned multiple of the mean over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, features: Tensor) -> Tensor:
        return self.scale * features.mean(dim=1, keepdim=True)


def heads(**parts: nn.Module) -> Heads:
    """An adversary with these heads in place of its own, by the parts that they read."""
    found = Heads(dict.fromkeys(parts, 1))
    found.heads = nn.ModuleList(parts.values())
    return found


def roles(teacher: Tensor, fake: Tensor) -> dict[str, nn.Module]:
    start = rng(1).normal(SHAPE)
    return {
        STUDENT: Says(start), TEACHER: Says(teacher), FAKE: Says(fake), TARGET: Says(torch.full(SHAPE, 3.0)),
        ADVERSARY: heads(mid_block=Scale()),
    }  # fmt: skip


def batch() -> Batch:
    return {"x_0": torch.full(SHAPE, 3.0), "condition": prompted(torch.zeros(SHAPE[0], 4, 4))}


ADVERSARIAL: tuple[Distillation, ...] = (
    DMD2(guidance=1.0, adversarial=1.0, features=("mid_block",)),
    ADD(guidance=NONE, distillation=0.0),
    Lightning(guidance=NONE, stages=(8, 4), stage_steps=1),
)
LATER = {"dmd2": 0, "add": 0, "lightning": 1}  # steps at which adversaries work


@pytest.mark.parametrize("method", ADVERSARIAL, ids=lambda one: one.name)
def test_students_go_where_the_adversary_sees_real_samples(method: Distillation) -> None:
    networks = roles(torch.zeros(SHAPE), torch.zeros(SHAPE))  # fake score and teacher agree: the adversary is alone
    student = networks[STUDENT]
    assert isinstance(student, Says)
    loss = method.losses(given(SD, "sample"), networks, batch(), rng(2), LATER[method.name])[STUDENT].value
    (found,) = torch.autograd.grad(loss, [student.data])
    assert bool((found < 0).all()), "samples grow when the gradient is followed down"


@pytest.mark.parametrize("method", ADVERSARIAL, ids=lambda one: one.name)
def test_adversaries_learn_to_tell_students_samples_from_real_ones(method: Distillation) -> None:
    """Those of Lightning are the ends of the earlier student's jumps."""
    slopes = []
    for value in (5.0, -5.0):
        real = torch.full(SHAPE, value)
        networks = {**roles(torch.zeros(SHAPE), torch.zeros(SHAPE)), TARGET: Says(real)}
        found = method.losses(given(SD, "sample"), networks, {**batch(), "x_0": real}, rng(2), LATER[method.name])
        (scale,) = networks[ADVERSARY].parameters()
        slopes.append(float(torch.autograd.grad(found[ADVERSARY].value, [scale])[0]))
    assert slopes[0] < 0 < slopes[1]


def test_dmd2_s_gradient_is_fake_less_real_over_the_distance_from_real() -> None:
    """Equations 1 and 2 of 2405.14867, with the normalisation of 2311.18828, equation 8."""
    real, fake = (rng(seed).normal(SHAPE) for seed in (3, 4))
    networks = roles(real, fake)
    method = DMD2(guidance=1.0, adversarial=0.0)
    student = networks[STUDENT]
    assert isinstance(student, Says)
    loss = method.losses(given(SD, "sample"), networks, batch(), rng(2), 0)[STUDENT].value
    (found,) = torch.autograd.grad(loss, [student.data])
    size = (student.data - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(found, ((fake - real) / size / student.data.numel()).detach(), rtol=1e-3, atol=1e-6)


def test_add_s_estimate_draws_samples_to_what_the_teacher_says() -> None:
    said = rng(3).normal(SHAPE)
    networks = roles(said, said)
    student = networks[STUDENT]
    assert isinstance(student, Says)
    method = ADD(guidance=NONE, adversarial=0.0, distillation=2.5)
    loss = method.losses(given(SD, "sample"), networks, batch(), rng(2), 0)[STUDENT].value
    (found,) = torch.autograd.grad(loss, [student.data])
    shares = found * student.data.numel() / (2 * 2.5 * (student.data.detach() - said))  # c(t) = s_t of each sample
    assert float(shares.flatten(1).std(dim=1).max()) < 1e-3
    assert bool(((shares > 0) & (shares < 1)).all())


@pytest.mark.parametrize("penalty", [0.0, 0.1])
def test_add_s_adversary_has_the_hinge_loss_and_r1_on_real_features(penalty: float) -> None:
    """Equation 3 of 2311.17042: relu(1 - D(real)) + relu(1 + D(fake)) + gamma |dD/dF|^2, where D at a place is here a
    tenth of the mean of F over channels.
    """
    method = replace(ADD(), penalty=penalty)
    real, fake = ({"mid_block": torch.full(SHAPE, value)} for value in (0.8, -3.0))
    found = method._adversary({ADVERSARY: heads(mid_block=Scale())}, real, fake)
    assert float(found.detach()) == pytest.approx((1 - 0.08) + (1 - 0.3) + penalty * 0.01 / SHAPE[1])


def test_towards_has_the_gradient_that_it_is_given() -> None:
    sample, gradient = (rng(seed).normal(SHAPE).requires_grad_() for seed in (1, 2))
    (found,) = torch.autograd.grad(towards(sample, gradient.detach()), [sample])
    torch.testing.assert_close(found, gradient.detach())


def half(right: float, wrong: float) -> tuple[Tensor, Tensor]:
    """Latents with one number at half of the places and another at the rest, and where the other is."""
    there = (torch.arange(SHAPE[2] * SHAPE[3]) % 2 == 1).view(SHAPE[2:]).expand(SHAPE)
    return torch.where(there, wrong, right), there


@pytest.mark.parametrize("loss", ["hinge", "softplus"])
def test_an_adversary_learns_where_half_of_the_places_are_wrong_and_their_mean_is_right(loss: str) -> None:
    adversary, (real, _), (fake, _) = heads(mid_block=nn.Conv2d(2, 1, 1)), half(300.0, -100.0), half(-300.0, 100.0)
    head = adversary.heads[0]
    assert isinstance(head, nn.Conv2d)
    assert head.bias is not None
    with torch.no_grad():
        head.weight.fill_(0.5)  # a place's logit is the mean over channels
        head.bias.zero_()
    maps = ({"mid_block": real}, {"mid_block": fake})
    if loss == "hinge":
        found = ADD(penalty=0.0)._adversary({ADVERSARY: adversary}, *maps)
    else:
        found = told_apart(*(adversary(features) for features in maps)).value
    # 100 on the wrong side, and the hinge's margin, at half of the places of both
    assert float(found.detach()) == pytest.approx({"hinge": 101.0, "softplus": 100.0}[loss])
    (slope,) = torch.autograd.grad(found, [head.weight])
    torch.testing.assert_close(slope.flatten(), torch.full((2,), 100.0))


@pytest.mark.parametrize("method", [one for one in ADVERSARIAL if one.name != "add"], ids=lambda one: one.name)
def test_students_move_where_they_are_found_out_though_their_mean_passes(method: Distillation) -> None:
    """ADD's student is left out: its loss, the mean of -D, moves every place alike."""
    data, wrong = half(3e5, -1e5)
    networks = roles(torch.zeros(SHAPE), torch.zeros(SHAPE)) | {STUDENT: Says(data)}
    student = networks[STUDENT]
    assert isinstance(student, Says)
    loss = method.losses(given(SD, "sample"), networks, batch(), rng(2), LATER[method.name])[STUDENT].value
    (found,) = torch.autograd.grad(loss, [student.data])
    assert bool((found[wrong] < 0).all())
    assert float(found[~wrong].abs().max()) < 1e-6 * float(found[wrong].abs().min())


def test_losses_are_means_over_places_and_then_over_maps() -> None:
    real, fake = (
        {name: 3 * rng(seed).normal((3, places)) for name, places in (("a", 20), ("b", 6))} for seed in (1, 2)
    )

    def mean(elementwise: Callable[[NDArray[np.float64]], NDArray[np.float64]], logits: dict[str, Tensor]) -> float:
        return float(np.mean([elementwise(each.double().numpy()).mean() for each in logits.values()]))

    hinge = mean_over_places(lambda each: torch.relu(1 - each), real)
    assert float(hinge) == pytest.approx(mean(lambda d: np.maximum(0, 1 - d), real))
    softplus = mean(lambda d: np.logaddexp(0, -d), real)
    assert float(non_saturating(real)) == pytest.approx(softplus)
    found = told_apart(real, fake)
    assert float(found.value) == pytest.approx(softplus + mean(lambda d: np.logaddexp(0, d), fake))
    for name, logits in (("adversary/real", real), ("adversary/fake", fake)):
        assert float(found.metrics[name]) == pytest.approx(mean(lambda d: 1 / (1 + np.exp(-d)), logits))


def test_heads_keep_a_logit_per_place_in_single_precision() -> None:
    adversary = Heads({"down_blocks.0": 4, "mid_block": 6}).bfloat16()
    logits = adversary(
        {"down_blocks.0": torch.randn(3, 4, 5, 7).bfloat16(), "mid_block": torch.randn(3, 6, 2, 3).bfloat16()}
    )
    assert {name: tuple(each.shape) for name, each in logits.items()} == {"down_blocks.0": (3, 35), "mid_block": (3, 6)}
    assert {each.dtype for each in logits.values()} == {torch.float32}


def slopes(head: nn.Module, features: Tensor) -> Tensor:
    """Gradients of every logit of a sample in its whole map, one after another: (places, channels, places)."""
    leaf = features.clone().requires_grad_()
    logits = head(leaf).flatten()
    return torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0][0].flatten(1) for one in logits])


def a_head(channels: int, seed: int) -> nn.Module:
    """A head of places that know nothing of each other."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(channels, 7, 1), nn.Tanh(), nn.Conv2d(7, 1, 1))


def penalised(adversary: Heads, features: dict[str, Tensor]) -> Tensor:
    leaves = {name: each.clone().requires_grad_() for name, each in features.items()}
    return r1(adversary(leaves), leaves)


def test_r1_is_the_mean_over_independent_places_of_their_logits_squared_slopes() -> None:
    adversary = heads(a=a_head(2, 1), b=a_head(3, 2))
    features = {"a": rng(1).normal((3, 2, 4, 5)), "b": rng(2).normal((3, 3, 2, 3))}
    found, explicit = penalised(adversary, features), []
    for head, each in zip(adversary.heads, features.values(), strict=True):
        of_places = [slopes(head, sample[None]).square().sum(dim=(1, 2)) for sample in each]
        explicit.append(torch.cat(of_places).mean())
    torch.testing.assert_close(found, torch.stack(explicit).mean())
    tiled = penalised(adversary, {name: each.repeat(1, 1, 3, 2) for name, each in features.items()})
    torch.testing.assert_close(tiled, found)
    learned = list(adversary.parameters())
    of_weights = torch.autograd.grad(found, learned, allow_unused=True)
    assert [g is None for g in of_weights] == [p.numel() == 1 for p in learned], "all learn but the last layers' biases"


def test_r1_adds_the_slopes_of_logits_that_depend_on_a_place() -> None:
    torch.manual_seed(0)
    adversary, features = Heads({"a": 6}), rng(3).normal((2, 6, 3, 4))
    found = penalised(adversary, {"a": features})
    explicit = [slopes(adversary.heads[0], sample[None]).sum(dim=0).square().sum() / 12 for sample in features]
    torch.testing.assert_close(found, torch.stack(explicit).mean())


def test_r1_of_the_heads_has_the_same_size_on_maps_of_any_size() -> None:
    torch.manual_seed(0)
    adversary = Heads({"a": 64})
    found = [float(penalised(adversary, {"a": rng(n).normal((4, 64, n, n))}).detach()) for n in (8, 32)]
    assert found[1] / found[0] == pytest.approx(1, abs=0.1), "16 times as many places"
