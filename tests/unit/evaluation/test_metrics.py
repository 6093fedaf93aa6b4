"""Metrics of pictures: what each of them is taken of, and that being listed is enough."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from raystill.evaluation.metrics import METRICS, Metric, Pictures, figures
from raystill.run.evaluate import EvaluationResult, table


def found(**changes: torch.Tensor) -> Pictures:
    """Twelve pictures with features of length 3, which are the real ones moved by 2 along every axis."""
    real = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    seconds = torch.full((12,), 0.5)
    return replace(Pictures(features=real + 2, real=real, reference=real + 2, seconds=seconds), **changes)


def test_each_metric_is_of_what_it_says() -> None:
    values = figures(found())
    assert values["frechet"] == pytest.approx(12, rel=1e-5)  # the squared distance of the means
    assert values["frechet_teacher"] == pytest.approx(0, abs=1e-4)
    assert values["kernel"] > 0
    assert values["images_per_s"] == 2
    assert "lpips_teacher" not in values  # the teacher's own pictures have none
    assert figures(found(lpips=torch.tensor([0.1, 0.3] * 6)))["lpips_teacher"] == pytest.approx(0.2)


def test_a_metric_that_is_listed_is_measured_and_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = Metric(
        name="spread", heading="spread", digits="8.2f", measure=lambda one: float(one.features.std(dim=0).mean())
    )
    every = (*METRICS, spread)
    own = figures(found(), every)
    assert own == {**figures(found()), "spread": pytest.approx(float(found().features.std(dim=0).mean()), rel=1e-4)}
    monkeypatch.setattr("raystill.run.evaluate.METRICS", every)
    picture = Image.new("RGB", (1, 1))
    head, _, teacher, student = table(
        EvaluationResult("x", "alexnet", {"25": own}, {"1": {**own, "lpips_teacher": 0.125}}, picture, "")
    ).splitlines()
    assert head.split() == ["steps", "frechet", "to", "teacher", "kernel", "lpips", "images/s", "spread"]
    assert teacher.split()[-1] == student.split()[-1] == f"{own['spread']:.2f}"
    assert len(head) == len(teacher) == len(student)
    assert student.split()[5] == "0.125"
