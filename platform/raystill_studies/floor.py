"""The floor of a Frechet distance: what two sets of as many pictures of one law have, which is not 0 (Heusel et al.
2017, arXiv:1706.08500, is biased upwards by the number of pictures).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raystill.evaluation.distances import frechet
from raystill.launch.launcher import Launcher
from raystill.run.evaluate import draw_teacher, features_of, read_rows
from raystill.run.settings import Run


def floor_of(run: Run, launcher: Launcher) -> float:
    """The Frechet distance between two sets of the teacher's own samples at its reference steps: of the evaluation's
    captions and starts, and of the same captions and the starts of the next seed.
    """
    evaluation = run.evaluation
    other = replace(run, evaluation=replace(evaluation, seed=evaluation.seed + 1))
    ours, theirs = (
        features_of(read_rows(*draw_teacher(one, launcher)), evaluation.reference_steps) for one in (run, other)
    )
    return frechet(ours, theirs, allow_few=True)


def above_floor(results: Mapping[str, Any]) -> dict[str, Any]:
    """Results of a study or a comparison whose Frechet distances to real pictures have their floor subtracted. Those to
    the teacher's samples are of pairs from the same starts, and have none.
    """
    floor = results["teacher"]["floor"]

    def lowered(one: Mapping[str, Any], name: str) -> dict[str, Any]:
        figures = {n: {**found, "frechet": found["frechet"] - floor} for n, found in one.get(name, {}).items()}
        return {**one, **({name: figures} if name in one else {})}

    return {
        **results,
        "teacher": lowered(results["teacher"], "figures"),
        "runs": {key: lowered(one, "student") for key, one in results["runs"].items()},
        "solvers": {label: lowered(one, "figures") for label, one in results.get("solvers", {}).items()},
    }
