"""Which way adversaries and fake scores push: students towards what passes for real, adversaries away from them."""

from dataclasses import replace

import pytest
import torch
from tests.given import given
from torch import Tensor, nn

from raystill.flow.randomness import RandomStream
from raystill.flow.schedules import DiffusionSchedule, scaled_linear_alphas
from raystill.methods.add import ADD
from raystill.methods.adversary import ADVERSARY, towards
from raystill.methods.dmd2 import DMD2, FAKE
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, TARGET, TEACHER, Distillation
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
    """An adversary that takes large numbers for real: its logit is a learned multiple of the features' mean."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        return self.scale * features["mid_block"].flatten(1).mean(dim=1)


def roles(teacher: Tensor, fake: Tensor) -> dict[str, nn.Module]:
    start = rng(1).normal(SHAPE)
    return {
        STUDENT: Says(start), TEACHER: Says(teacher), FAKE: Says(fake), TARGET: Says(torch.full(SHAPE, 3.0)),
        ADVERSARY: Scale(),
    }  # fmt: skip


def batch() -> dict[str, Tensor]:
    return {"x_0": torch.full(SHAPE, 3.0), "condition": torch.zeros(SHAPE[0], 4, 4)}


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
        adversary = networks[ADVERSARY]
        assert isinstance(adversary, Scale)
        found = method.losses(given(SD, "sample"), networks, {**batch(), "x_0": real}, rng(2), LATER[method.name])
        slopes.append(float(torch.autograd.grad(found[ADVERSARY].value, [adversary.scale])[0]))
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
    """Equation 2 of 2311.17042: relu(1 - D(real)) + relu(1 + D(fake)) + gamma |dD/dF|^2, D = 0.1 mean F here."""
    method = replace(ADD(), penalty=penalty)
    real, fake = ({"mid_block": torch.full(SHAPE, value)} for value in (0.8, -3.0))
    found = method._adversary({ADVERSARY: Scale()}, real, fake)
    numbers = SHAPE[1] * SHAPE[2] * SHAPE[3]
    assert float(found.detach()) == pytest.approx((1 - 0.08) + (1 - 0.3) + penalty * 0.01 / numbers)


def test_towards_has_the_gradient_that_it_is_given() -> None:
    sample, gradient = (rng(seed).normal(SHAPE).requires_grad_() for seed in (1, 2))
    (found,) = torch.autograd.grad(towards(sample, gradient.detach()), [sample])
    torch.testing.assert_close(found, gradient.detach())
