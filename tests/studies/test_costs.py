"""Which steps of a training are timed."""

import pytest
import torch
from tests.given import given

from raystill.flow.schedules import DiffusionSchedule, scaled_linear_alphas
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT, Distillation
from raystill.methods.rayflow import RayFlow
from raystill_studies.costs import comparable, picks

SD = DiffusionSchedule.from_alphas(scaled_linear_alphas())


@pytest.mark.parametrize(
    "method", [RayFlow(), CTM(), DMD2(ratio=5), DMD2(ratio=3), Lightning(stage_steps=20)], ids=lambda m: m.name
)
@pytest.mark.parametrize("offset", [0.0, 1 / 3, 2 / 3])
def test_every_kind_of_turn_counts_as_often_as_it_comes(method: Distillation, offset: float) -> None:
    steps = 300
    shares, picked = picks(method.bind(given(SD, "v_prediction")), steps, offset)
    assert sum(shares.values()) == pytest.approx(1.0)
    student = sum(STUDENT in method.turn(step) for step in range(steps)) / steps
    assert sum(share for kind, share in shares.items() if STUDENT in kind) == pytest.approx(student)
    for kind, some in picked.items():
        assert len(some) >= 2
        assert len(set(some)) == len(some)
        assert all(method.turn(step) == kind for step in some)


def test_rounds_take_other_steps() -> None:
    method = RayFlow().bind(given(SD, "v_prediction"))
    rounds = [set(next(iter(picks(method, 60, i / 3)[1].values()))) for i in range(3)]
    assert not rounds[0] & rounds[1]
    assert torch.tensor(sorted(rounds[0] | rounds[1] | rounds[2])).diff().max() <= 5


def test_costs_of_two_machines_are_not_mixed() -> None:
    """Rounds that are missing are measured here, hence all of them where the others are of another machine."""
    of = {"a": "1", "b": "2"}
    costs = {label: {"of": of[label], "machine": "there", "rounds": [{}, {}]} for label in of}
    assert comparable(costs, of, rounds=2, here="here") == costs
    assert comparable(costs, of, rounds=3, here="here") == {}
    assert comparable(costs, of, rounds=3, here="there") == costs
    assert comparable(costs, of | {"c": "3"}, rounds=2, here="here") == {}
    assert comparable(costs, of | {"b": "other settings"}, rounds=2, here="there") == {"a": costs["a"]}
