"""RayFlow's learning rate and distance at the demo's budget and at three times that."""

from dataclasses import replace
from typing import Any

from raystill_studies.recipes import rayflow_study
from raystill_studies.study import Question, Study, Variant

DEMO = 100  # training steps of the demo, two lanes of 64 samples each
RATES = (1e-3, 3e-3)


def run() -> Study:
    """The whole study, about an hour of two cores."""
    study = rayflow_study.run()
    return replace(study, name="rates", questions=tuple(rates(steps) for steps in (DEMO, 3 * DEMO)))


def rates(steps: int) -> Question:
    """The learning rate and the distance after so many steps of the demo's size."""
    changes: dict[str, Any] = {"training.steps": steps, "training.lanes": 2, "training.lane_size": 64}
    huber = rayflow_study.HUBER
    return Question(
        title=f"rate and distance after {steps} steps",
        text=f"{steps} steps of two lanes of 64 samples, the loss on data, times of the sampler's own.",
        variants=tuple(
            Variant(
                label=f"{name}, {rate:g}",
                changes={**changes, "method.objective": objective, "optimizer.learning_rate": rate},
            )
            for name, objective in (("pseudo-Huber", huber), ("squared", replace(huber, distance="squared")))
            for rate in RATES
        ),
    )
