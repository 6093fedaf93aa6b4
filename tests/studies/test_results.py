"""Shipped measurements are those of the shipped recipes."""

import json
from pathlib import Path
from typing import Any

import pytest

from raystill.config.fingerprint import fingerprint
from raystill.evaluation.notes import notes_on
from raystill_studies.compare import seconds_steps
from raystill_studies.recipes import methods, methods_study, rates_study, rayflow_study
from raystill_studies.study import EARLIER, Study, missing_of

STUDIES = [rayflow_study.run(), rates_study.run(), methods_study.run()]
RESULTS = Path(__file__).parents[2] / "docs" / "results"


def kept(name: str) -> dict[str, Any]:
    results: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return results


def test_the_study_s_results_are_found_again() -> None:
    """Where a default was changed on purpose, the keys of the results are rewritten by label and seed."""
    for study in (rayflow_study.run(), rates_study.run()):
        results = kept(f"{study.name}.json")
        assert set(study.runs()) == set(results["runs"])
        assert study.teacher_key == results["teacher"]["of"]


def test_the_comparison_s_results_are_found_again() -> None:
    comparison, results = methods.run(), kept("methods.json")
    tuned = results["tuned"]
    assert {label: found["of"] for label, found in tuned.items()} == {
        entrant.label: fingerprint(comparison.search(entrant)) for entrant in comparison.entrants
    }
    assert all(len(found["trials"]) == comparison.trials for found in tuned.values())
    config = {label: found["config"] for label, found in tuned.items()}
    study = comparison.study(config, seconds_steps(comparison, results, config))
    assert set(results["runs"]) == set(study.runs())


def test_the_study_of_methods_takes_what_the_comparison_s_trials_took() -> None:
    """Trainings that both have are measured once, and have the same keys."""
    study, results, compared = methods_study.run(), kept("methods_study.json"), kept("methods.json")
    assert set(results["runs"]) <= set(study.runs())
    assert study.teacher_key == results["teacher"]["of"]
    shared = methods_study.TUNED.keys() & compared["tuned"].keys()  # the paired path is RayFlow's own at sigma 0
    assert shared >= {"RayFlow", "Rectified Diffusion", "TCD", "TSCD", "LCM"}
    assert all(compared["tuned"][label]["config"] == methods_study.TUNED[label] for label in shared)
    both = [(results["runs"][key], compared["runs"][key]) for key in results["runs"].keys() & compared["runs"].keys()]
    assert all(one == other for one, other in both if (EARLIER in one) == (EARLIER in other))


@pytest.mark.parametrize(
    "study", [rayflow_study.run(), rates_study.run(), methods_study.run()], ids=lambda study: study.name
)
def test_a_study_s_page_is_that_of_its_recipe_and_notes(study: Study) -> None:
    page, titles = (RESULTS / f"{study.name}.md").read_text(), [question.title for question in study.questions]
    lead, notes = notes_on(RESULTS / f"{study.name}.md", titles)
    assert f"`python jobs/study.py --recipe {study.name.removesuffix('_study')}_study --set output=" in lead
    assert lead in page
    assert all(text in page for text in notes.values())
    assert f"{len(study.runs())} of {len(study.runs())} runs are measured" in page
    for number, question in enumerate(study.questions, 1):
        assert f"## {number}. {question.title}\n" in page
        assert all(f"| {variant.label} |" in page for variant in question.variants)


def test_the_comparison_s_page_is_that_of_its_recipe() -> None:
    page, comparison = (RESULTS / "methods.md").read_text(), methods.run()
    assert notes_on(RESULTS / "methods.md")[0] in page
    assert all(f"| {entrant.label} |" in page for entrant in comparison.entrants)


@pytest.mark.parametrize("name", ["rayflow", "methods_study", "methods"])
def test_a_page_says_how_many_of_its_runs_earlier_code_measured(name: str) -> None:
    runs = kept(f"{name}.json")["runs"].values()
    count = sum(EARLIER in one for one in runs)
    said = f"{count} of {len(runs)} runs were measured by earlier code" in (RESULTS / f"{name}.md").read_text()
    assert said == (count > 0)


def test_what_earlier_code_measured_is_measured_again() -> None:
    study, runs = rayflow_study.run(), kept("rayflow.json")["runs"]
    first, *others = study.runs()
    results = {"runs": {key: runs[key] for key in others} | {first: {**runs[first], EARLIER: "code"}}}
    there = {key for key, one in results["runs"].items() if EARLIER not in one}
    assert set(missing_of(study, results)) == set(study.runs()) - there
    assert first in missing_of(study, results)
