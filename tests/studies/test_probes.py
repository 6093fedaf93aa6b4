"""What a study measures of students, against students whose answers are known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.given import given
from torch import Tensor, nn

from raystill.data.records import Reading
from raystill.flow.importance import GridTimes
from raystill.flow.objectives import Objective
from raystill.flow.paths import RayPath
from raystill.flow.times import UniformTimes
from raystill.methods.rayflow import RayFlow
from raystill.models.pipeline import load_pipeline
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import Assembly
from raystill_studies.gradients import GradientProbe, GradientTransform, efficiency
from raystill_studies.overlap import OverlapProbe, OverlapTransform, overlap
from raystill_studies.probes import Probe, ProbeTransform, means


class Constant(nn.Module):
    """A student of the kind `sample` that says one number, whatever it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.said = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (self.said + torch.zeros_like(x),)


def targets(count: int = 5) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "key": f"{i}",
            "caption": "",
            "x_0": rng.normal(1.0, 2.0, (4, 8, 8)).astype(np.float32),
            "target_mean": rng.normal(size=(4, 8, 8)).astype(np.float32),
            "condition.prompt": np.zeros((3, 2), np.float32),
        }
        for i in range(count)
    ]


def assembly(tiny_pipeline: Path, method: RayFlow) -> Assembly:
    told = given(load_pipeline(tiny_pipeline).schedule, "sample")
    return Assembly(method.bind(told), {"student": Constant()}, given=told)


@pytest.mark.parametrize("sigma", [0.0, 0.3])
def test_the_error_of_a_student_that_knows_nothing_is_the_second_moment(tiny_pipeline: Path, sigma: float) -> None:
    method = RayFlow(path=RayPath(sigma=sigma))
    built = assembly(tiny_pipeline, method)
    rows = targets()
    found = overlap(OverlapTransform(lambda _: built, method, OverlapProbe(points=3), "cpu").compute(rows))
    x_0 = np.stack([row["x_0"] for row in rows])
    assert found == pytest.approx([np.square(x_0).mean() / x_0.var(axis=0, ddof=1).mean()] * 3, rel=1e-4)


def test_the_gradient_of_a_constant_is_twice_the_mean_error(tiny_pipeline: Path) -> None:
    method = RayFlow(times=UniformTimes(), objective=Objective(target="data"))
    built, task = (
        assembly(tiny_pipeline, method),
        DistillTask(teacher=str(tiny_pipeline), method=method, training=Training(lane_size=4)),
    )
    rows = targets()
    found = GradientTransform(lambda _: built, task, GradientProbe(instances=3, points=4, timed=1), "cpu").compute(rows)
    assert len(found) == 3
    for row, one in zip(rows, found, strict=False):
        assert one["square"] == pytest.approx(np.full(4, (2 * row["x_0"].mean()) ** 2), rel=1e-4)
        assert one["density"] == pytest.approx(np.ones(4))
    assert efficiency(found)["ratio"] == pytest.approx(1)


def test_efficiency_of_known_gradients() -> None:
    seconds = {"student_s": np.asarray(2.0), "law_s": np.asarray(0.1)}
    rows = [{"square": np.array([1.0, 4.0]), "density": np.array([0.5, 1.5]), **seconds}] * 2
    found = efficiency(rows)
    assert found["ratio"] == pytest.approx((1 / 0.5 + 4 / 1.5) / 5)
    assert found["oracle"] == pytest.approx(1.5**2 / 2.5)
    assert found["best_density"] == pytest.approx([2 / 3, 4 / 3], abs=1e-4)
    scaled = [{**row, "density": 0.9 * row["density"]} for row in rows]  # as points in too few of a law's bins give it
    assert efficiency(scaled)["ratio"] == pytest.approx(found["ratio"])


def test_a_law_s_ratio_does_not_depend_on_where_its_cells_end() -> None:
    # A known law in 64 cells, whose edges the points may meet, against its own integral.
    times, v = GridTimes(instance=False), (torch.arange(40, dtype=torch.float64) + 0.5) / 40
    outputs = torch.linspace(3, -3, times.knots, dtype=torch.float64)[None]
    fine = (torch.arange(6400, dtype=torch.float64) + 0.5) / 6400
    square = torch.exp(-4 * fine)
    exact = float((square / times.density(outputs, fine[None])[0]).mean() / square.mean())
    seconds = {"student_s": np.asarray(1.0), "law_s": np.asarray(0.0)}
    row = {"square": torch.exp(-4 * v).numpy(), "density": times.density(outputs, v[None])[0].numpy(), **seconds}
    assert efficiency([row])["ratio"] == pytest.approx(exact, rel=0.02)


def test_a_linear_sampler_has_its_factor_as_lipschitz_estimate(tiny_pipeline: Path) -> None:
    pipeline = load_pipeline(tiny_pipeline).to(torch.device("cpu"))
    rows = [{"key": key, "caption": "cat face"} for key in ("a", "b")]
    reading = Reading(picture_size=16)

    def probed(draw: Any) -> dict[str, float]:
        transform = ProbeTransform(lambda: (pipeline, draw), (1, 4), Probe(starts=2), reading, "alexnet")
        return means(transform.compute([dict(row) for row in rows]), (1, 4))

    linear = probed(lambda z, _c, steps: 0.5 * steps * z)
    assert linear["lipschitz_1"] == pytest.approx(0.5, rel=1e-4)
    assert linear["lipschitz_4"] == pytest.approx(2.0, rel=1e-4)
    assert linear["diversity_4"] > 0
    constant = probed(lambda z, _c, _steps: torch.zeros_like(z))
    assert constant["lipschitz_1"] == constant["diversity_1"] == 0
