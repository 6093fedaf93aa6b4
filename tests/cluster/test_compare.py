"""A small comparison by its own command: measured once, found again, reported with reference rows and a picture."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.workplace import ROOT, Typed, run, script

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
RECIPE = """
from dataclasses import replace

from raystill.data.records import Reading
from raystill.targets.targets import Encoding, Generation
from raystill.methods.dmd2 import DMD2
from raystill.methods.rayflow import RayFlow
from raystill.models.weights import Lora
from raystill_studies.comparison import Entrant
from raystill_studies.probes import Probe
from raystill.run.settings import Evaluation, Targets
from raystill.search.space import Range
from raystill_studies.recipes import methods

SPACE = (Range(path="optimizer.learning_rate", low=1e-4, high=1e-3, log=True),)
FIRST = ({SPACE[0].path: 3e-4},)


def small():
    whole = methods.run()
    base = replace(
        whole.base, teacher="teachers/tiny", sample=None, store="environment", artifacts=None, shards="few",
        work="work",
        weights=Lora(rank=2, alpha=2.0, targets=("to_q", "conv1")), reading=Reading(),
        training=replace(whole.base.training, lane_size=4, log_every=2),
        evaluation=Evaluation(shards=1, pictures=8, teacher_steps=(1, 2), reference_steps=2, captions=CAPTIONS),
    )
    online = Targets(estimator=Encoding())
    entrants = (
        Entrant(label="RayFlow", method=RayFlow(), targets=Targets(estimator=Generation(solver_steps=2)), space=SPACE),
        Entrant(label="DMD2", method=DMD2(ratio=2, adversarial=0.0), targets=online, space=SPACE),
    )
    return replace(
        whole, base=base, entrants=entrants, trials=1, first=FIRST, updates=4, seconds=4.0, seeds=(0,),
        rounds=1, tuning_seed=7,
        probe=Probe(shards=1, captions=3, starts=2), solvers=("UniPCMultistepScheduler",),
    )


CAPTIONS = {captions!r}
"""


def compare(place: Path, *changes: str) -> "subprocess.CompletedProcess[str]":
    return run([*script("compare"), "--recipe", "small.py:small", *changes], place, timeout=850)


@pytest.fixture(scope="module")
def recipe(workplace: Path, few: Path) -> None:
    """A small comparison's file, at the workplace."""
    from raystill.data.local import LocalStore
    from raystill.data.shards import list_shards, unpack

    store = LocalStore(uri=str(few))
    first = list_shards(store)[0].key
    captions = tuple(sample.members["txt"].decode() for sample in unpack(store.read(first), first))[:2]
    (workplace / "small.py").write_text(RECIPE.replace("{captions!r}", repr(captions)))
    (workplace / "work").mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def compared(recipe: None, workplace: Path) -> dict[str, Any]:
    """What the command printed, and its results."""
    done = compare(workplace)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"text": done.stdout, "results": json.loads((workplace / ".raystill/reports/methods.json").read_text())}


# Five minutes of what others show apart: tuning and trainings on Ray (test_three_ways.py), budgets, costs and report
# (tests/studies/test_comparison.py, test_costs.py), results that are measured once (test_study.py).
@pytest.mark.second
def test_every_run_of_both_budgets_is_measured(compared: dict[str, Any], workplace: Path) -> None:
    results, text = compared["results"], compared["text"]
    assert set(results["tuned"]) == set(results["costs"]) == {"RayFlow", "DMD2"}
    assert all(len(found["trials"]) == 1 for found in results["tuned"].values())
    assert all(found["config"] == {"optimizer.learning_rate": 3e-4} for found in results["tuned"].values())
    assert len(results["runs"]) == 4
    assert not any("failed" in one for one in results["runs"].values())
    assert {4, 7} < {one["steps"] for one in results["runs"].values()}
    assert all(cost["step_s"] > 0 and cost["peak_gib"] > 0 for cost in results["costs"].values())
    assert "4 of 4 runs are measured, 0 of which stopped" in text
    assert re.search(r"^\| UniPC \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(r"^\| RayFlow \| \[2503\.07699\]\S+ \| [\d.]+ \|", text, re.MULTILINE)
    assert re.search(r"^\| DMD2 \| 4 \| 7 \| ", text, re.MULTILINE)
    assert re.search(r"^- 4 steps: RayFlow is number [12] of 2; its distance over that of ", text, re.MULTILINE)
    picture = Image.open(workplace / ".raystill/reports/methods.png")
    assert picture.width > 5 * 64
    for chart in ("updates", "seconds"):
        assert f"](methods-{chart}.png)" in text
        assert Image.open(workplace / f".raystill/reports/methods-{chart}.png").width > 500


@pytest.mark.second  # tests/studies/test_study.py: both measure what is missing by one function
def test_what_is_there_is_not_measured_again(compared: dict[str, Any], workplace: Path) -> None:
    path = workplace / ".raystill/reports/methods.json"
    before = path.stat().st_mtime_ns
    path.with_suffix(".notes.md").write_text("Said by a person.\n")
    done = compare(workplace)
    assert done.returncode == 0, done.stderr[-3000:]
    assert path.stat().st_mtime_ns == before
    assert "Said by a person." in (workplace / ".raystill/reports/methods.md").read_text()


@pytest.mark.second
def test_only_what_is_named_is_measured_again(compared: dict[str, Any], workplace: Path) -> None:
    """The other rows stay as they are, and so do all costs, from which the second budget follows."""
    path = workplace / ".raystill/reports/methods.json"
    before = json.loads(path.read_text())
    path.write_text(json.dumps({**before, "runs": {k: {**one, "earlier": "x"} for k, one in before["runs"].items()}}))
    done = compare(workplace, "--set", 'only=["RayFlow"]')
    assert done.returncode == 0, done.stderr[-3000:]
    after = json.loads(path.read_text())
    assert sum("earlier" in one for one in after["runs"].values()) == 2
    assert after["costs"] == before["costs"]
    assert "2 of 4 runs were measured by earlier code" in (workplace / ".raystill/reports/methods.md").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("searched=[3]", "entrant 'RayFlow': none of the steps that are searched, [3], is among its own"),
        ('solvers=["Euler"]', "there is no scheduler 'Euler' in diffusers"),
        ("seeds=[]", "write different seeds"),
        (
            'first=[{"optimizer.learning_rate": 1}]',
            "first has optimizer.learning_rate = 1, and the search space offers",
        ),
        ("base.teacher=nowhere", "is not a diffusers pipeline"),
        ("base.weights.rank=0", "write 1 or more"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_starts(
    recipe: None, workplace: Path, typed: Typed, change: str, message: str
) -> None:
    done = typed([*script("compare"), "--recipe", "small.py:small", "--set", change], workplace)
    assert done.returncode == 2, done.stderr[-2000:]
    assert message in done.stderr


def test_a_recipe_of_another_job_is_refused(typed: Typed) -> None:
    done = typed([*script("compare"), "--recipe", "nano"], ROOT)
    assert done.returncode == 2
    assert "compare takes a Comparison, such as --recipe methods gives" in done.stderr
