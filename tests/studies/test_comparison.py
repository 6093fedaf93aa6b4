"""What the shipped comparison tries of each method, and how its report counts."""

import re
from dataclasses import replace
from typing import Any

import pytest

from raystill.config.errors import UserError
from raystill.config.overrides import override
from raystill.methods.lightning import Lightning
from raystill.methods.method import STUDENT
from raystill_studies.compare import entering
from raystill_studies.compare_report import chart, report
from raystill_studies.comparison import SECONDS, UPDATES, Comparison, Entrant
from raystill_studies.costs import Cost, mean
from raystill_studies.recipes import methods
from raystill_studies.recipes.methods import RATE, RATES
from raystill_studies.report import commits_of

SHIPPED = methods.run()


def by_label(label: str) -> Entrant:
    return next(entrant for entrant in SHIPPED.entrants if entrant.label == label)


@pytest.mark.parametrize("entrant", SHIPPED.entrants, ids=lambda one: one.label)
def test_first_trials_are_a_method_s_own_settings_at_each_rate(entrant: Entrant) -> None:
    own = SHIPPED.run_of(entrant, SHIPPED.steps(entrant), {})
    search = SHIPPED.search(entrant)
    assert [point[RATE.path] for point in search.first] == list(RATES)
    for point in search.first:
        trial = search.run_of(point)
        assert override(trial, {RATE.path: own.optimizer.learning_rate}).method == own.method
        assert trial.optimizer == replace(own.optimizer, learning_rate=point[RATE.path])
    assert len(search.first) < search.trials  # the others are proposed


def test_every_method_has_as_many_trials_and_other_seeds_than_are_compared() -> None:
    searches = [SHIPPED.search(entrant) for entrant in SHIPPED.entrants]
    assert {search.trials for search in searches} == {SHIPPED.trials}
    assert not {search.base.training.seed for search in searches} & set(SHIPPED.seeds)
    assert {search.base.evaluation.seed for search in searches} == {SHIPPED.base.evaluation.seed + 1}


def test_adversaries_rates_are_searched_too() -> None:
    for entrant in SHIPPED.entrants:
        searched = {domain.path for domain in entrant.space}
        assert ("method.learning_rate" in searched) == hasattr(entrant.method, "learning_rate")


def test_a_student_for_some_steps_is_chosen_at_these() -> None:
    steps = {
        label: SHIPPED.search(by_label(label)).student_steps
        for label in ("Lightning to 1 step", "Lightning to 4 steps")
    }
    assert steps == {"Lightning to 1 step": (1,), "Lightning to 4 steps": (4,)}
    four = SHIPPED.run_of(by_label("Lightning to 4 steps"), 100, {})
    assert isinstance(four.method, Lightning)
    assert four.method.stages[-1] == 4
    assert four.evaluation.student_steps == (4, 8)
    assert SHIPPED.search(by_label("PeRFlow")).student_steps == (4,)


def test_all_students_have_equally_many_updates() -> None:
    for entrant in SHIPPED.entrants:
        run = SHIPPED.run_of(entrant, SHIPPED.steps(entrant), {})
        updates = sum(STUDENT in run.method.turn(step) for step in range(run.training.steps))
        assert updates == SHIPPED.updates


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base.teacher": "nowhere"}, "'nowhere' is not a diffusers pipeline"),
        ({"solvers": ("HeunDiscreteScheduler",)}, "HeunDiscreteScheduler calls the network 7 times in 4 steps"),
        ({"searched": (3,)}, r"\[3\], is among its own, \[1, 2, 4, 8\]: --set 'searched=\[1, 2, 4, 8\]'"),
    ],
)
def test_what_cannot_be_compared_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(SHIPPED, changes).check()


def test_first_trials_beyond_the_trials_are_refused() -> None:
    with pytest.raises(UserError, match="entrant 'RayFlow': trials is 2; write 3 or more"):
        replace(SHIPPED, trials=2).check()


def test_own_settings_that_the_space_lacks_are_refused() -> None:
    narrow = replace(by_label("ADD"), space=(replace(RATE, low=0.5e-3, high=1e-2),))
    with pytest.raises(UserError, match=r"entrant 'ADD': first has optimizer\.learning_rate = 0\.0002, and"):
        replace(SHIPPED, entrants=(narrow,)).check()


def test_costs_are_means_of_rounds() -> None:
    found = mean([Cost(step_s=1.0, target_s=0.25, peak_gib=2.0), Cost(step_s=2.0, target_s=0.5, peak_gib=3.0)])
    assert found == Cost(step_s=1.5, target_s=0.375, peak_gib=2.5)


def test_commits_are_shortened_and_say_what_was_edited() -> None:
    runs = [{"commit": f"{letter * 40}{end}"} for letter, end in (("b", ""), ("a", "-dirty"), ("b", ""))]
    assert commits_of([*runs, {"failed": "x"}]) == "aaaaaaaaaa-dirty, bbbbbbbbbb"


def results_of(comparison: Comparison, distances: dict[str, float]) -> tuple[Any, dict[str, Any]]:
    """As they are kept: every run of an entrant has its distance at every number of steps that it samples."""
    labels = [entrant.label for entrant in comparison.entrants]
    study = comparison.study({label: {} for label in labels}, dict.fromkeys(labels, 120))
    runs, names = {}, ("frechet", "frechet_teacher", "kernel", "lpips_teacher", "images_per_s")
    for question in study.questions:
        for variant in question.variants:
            for seed in comparison.seeds:
                key, run = study.run_of(variant, seed)
                value = distances[variant.label] * (1 + 0.01 * seed)
                figures = {str(n): dict.fromkeys(names, value) for n in run.evaluation.student_steps}
                runs[key] = {"student": figures, "steps": run.training.steps, "commit": "c" * 40}
    figures = {str(n): dict.fromkeys(names, 90.0) for n in (1, 2, 4, 8)}
    cost = {"targets": 10, "step_s": 0.5, "target_s": 0.1, "peak_gib": 1.0}
    trials = [{"config": {}, "error": "", "quality": 4.5}, {"config": {}, "error": "", "quality": 4.7}]
    tuned = {"config": {RATE.path: 1e-3}, "trials": trials}
    return study, {
        "runs": runs,
        "costs": dict.fromkeys(distances, cost),
        "tuned": dict.fromkeys(distances, tuned),
        "solvers": {label: {"figures": figures, "diversity": {"1": 2.0}} for label in comparison.references()},
        "teacher": {"figures": {}, "probes": {}, "floor": 10.0},
    }


def test_the_first_one_s_place_is_among_other_methods() -> None:
    """By distances above the floor; its own variant and entrants that do not sample so few steps have no place."""
    labels = ("RayFlow", "RayFlow, plain", "PeRFlow", "LCM")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, labels)))
    study, results = results_of(comparison, dict(zip(labels, (80.0, 60.0, 70.0, 100.0), strict=True)))
    text = report(comparison, study, results)
    for title in (UPDATES, SECONDS):
        part = text.partition(f". {title.capitalize()}")[2].partition("## ")[0]
        assert (
            "- 1 step: RayFlow is number 1 of 2; its distance over that of LCM, the best other one, is 0.77" in part
        )  # above the floor
        assert "- 4 steps: RayFlow is number 2 of 3; its distance over that of PeRFlow, the best other one" in part
    assert "| LCM | optimizer.learning_rate 5e-05 to 0.01, intervals 25 or 50 |" in text
    assert "1, 2, 4 | 90.02 to 109.9 |" in text
    assert "| PeRFlow | 100 | 100 | " in text
    assert re.search(r"^\| PeRFlow \| \[2405\.07510\]\S+ \| - \| - \| [\d.]+ ± [\d.e-]+ \|", text, re.MULTILINE)


def test_only_some_entrants_are_measured() -> None:
    comparison = replace(SHIPPED, only=("LCM", "RayFlow"))
    comparison.check()
    study, _ = results_of(comparison, dict.fromkeys([e.label for e in comparison.entrants], 80.0))
    assert [entrant.label for entrant in comparison.entering] == ["RayFlow", "LCM"]
    for question in entering(comparison, study).questions:
        assert [variant.label for variant in question.variants] == ["RayFlow", "LCM"]
    assert SHIPPED.entering == SHIPPED.entrants
    with pytest.raises(UserError, match="only has rayflow; the entrants are RayFlow, RayFlow, plain, "):
        replace(SHIPPED, only=("rayflow",)).check()


def test_a_comparison_of_some_has_no_rows_of_others() -> None:
    """As its page is where `only` named them before anything else was measured."""
    labels = ("RayFlow", "LCM")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, (*labels, "PeRFlow"))), only=labels, name="some")
    study, results = results_of(replace(comparison, entrants=tuple(map(by_label, labels))), dict.fromkeys(labels, 80.0))
    text = report(comparison, study, results)
    assert "| LCM | optimizer.learning_rate" in text
    assert "PeRFlow" not in text


def test_distances_at_their_floor_have_no_ratios_and_a_place_in_the_chart() -> None:
    labels = ("RayFlow", "LCM")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, labels)), name="floored")
    study, results = results_of(comparison, dict.fromkeys(labels, 80.0))
    for one in results["runs"].values():
        for figures in one["student"].values():
            figures["frechet"] = 9.0  # 1 below the floor
    assert "its distance over that of LCM, the best other one, is -." in report(comparison, study, results)
    figure: Any = chart(comparison, study, study.questions[0], results)
    low, high = figure.axes[0].get_xlim()
    assert low < -1 < high


def test_methods_that_share_a_file_are_cited_one_by_one() -> None:
    labels = ("Reflow", "InstaFlow", "rf++")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, labels)))
    text = report(comparison, *results_of(comparison, dict.fromkeys(labels, 80.0)))
    for label, paper in zip(labels, ("2209.03003", "2309.06380", "2405.20320"), strict=True):
        assert f"| {label} | [{paper}](https://arxiv.org/abs/{paper}) |" in text


def test_a_stopped_comparison_has_a_page() -> None:
    """It says what is missing, and has no place for a first entrant whose seeds are not all there."""
    labels = ("RayFlow", "LCM")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, labels)), name="stopped")
    study, results = results_of(comparison, dict.fromkeys(labels, 80.0))
    for variant in study.questions[0].variants:
        for seed in comparison.seeds[1:] if variant.label == "LCM" else comparison.seeds:
            del results["runs"][study.run_of(variant, seed)[0]]
    text = report(comparison, study, results)
    assert "7 of 12 runs are measured" in text
    assert "| RayFlow (0 of 3 seeds) | " in text
    assert "| LCM (1 of 3 seeds) | " in text
    assert "marked *" not in text
    for one in results["runs"].values():
        one["earlier"] = "before"
    text = report(comparison, study, results)
    assert "**7 of 7 runs were measured by earlier code" in text
    assert "| LCM (1 of 3 seeds) * | " in text
    assert text.count("RayFlow has no place: its runs were not all measured.") == 1
    assert "- 1 step: RayFlow is number 1 of 2" in text  # in the second budget
    assert "## Pictures" not in text


def test_a_chart_has_every_method_that_was_measured_best_at_four_steps_on_top() -> None:
    """Above the floor, with the spread over seeds; a line is the best solver without training at a number of steps."""
    labels = ("RayFlow", "PeRFlow", "LCM", "TCD")
    comparison = replace(SHIPPED, entrants=tuple(map(by_label, labels)))
    study, results = results_of(comparison, dict(zip(labels, (80.0, 70.0, 100.0, 60.0), strict=True)))
    for seed in comparison.seeds:
        del results["runs"][study.run_of(study.questions[0].variants[3], seed)[0]]
    figure: Any = chart(comparison, study, study.questions[0], results)
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["LCM", "RayFlow", "PeRFlow"]
    one, *_, eight = axes.containers
    assert one.lines[0].get_xdata().tolist() == pytest.approx([91.0, 70.8])  # PeRFlow has no student of one step
    assert eight.lines[0].get_xdata().tolist() == pytest.approx([91.0, 70.8, 60.7])
    assert sum(line.get_xdata()[0] == 80.0 for line in axes.lines) == 4
