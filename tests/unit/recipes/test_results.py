"""Shipped measurements are those of the shipped recipes."""

import json
from pathlib import Path
from typing import Any

from raystill.config.digest import canonical, digest
from raystill.orchestration.compare import seconds_steps
from raystill.recipes import methods, rayflow_study

RESULTS = Path(__file__).parents[3] / "docs" / "results"


def kept(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return results


def test_the_study_s_results_are_found_again() -> None:
    """Where a new setting changes the digests, the keys of the results are rewritten by label and seed."""
    study, results = rayflow_study.run(), kept("rayflow.json")
    assert set(study.runs()) == set(results["runs"])
    assert study.teacher_key == results["teacher"]["of"]


def test_the_comparison_s_results_are_found_again() -> None:
    """Also while it is not complete: what is there is not measured again."""
    comparison, results = methods.run(), kept("methods.json")
    searches = {entrant.label: comparison.search(entrant).measured for entrant in comparison.entrants}
    tuned = results["tuned"]
    assert {label: found["of"] for label, found in tuned.items()} == {
        label: digest(canonical(searches[label])) for label in tuned
    }
    assert all(len(found["trials"]) == comparison.trials for found in tuned.values())
    whole = {label: found for label, found in tuned.items() if "step_s" in results.get("costs", {}).get(label, {})}
    steps = seconds_steps(comparison, results, whole)
    study = comparison.study({label: found["config"] for label, found in whole.items()}, steps)
    assert set(results["runs"]) <= set(study.runs())
