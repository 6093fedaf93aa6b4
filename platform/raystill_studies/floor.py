"""Results above the floor of their Frechet distances (`run.evaluate.floor_of`)."""

from collections.abc import Mapping
from typing import Any


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
