"""Shipped measurements are those of the shipped recipes."""

import json
from pathlib import Path

from raystill.recipes import rayflow_study

ROOT = Path(__file__).parents[3]


def test_the_study_s_results_are_found_again() -> None:
    """Where a new setting changes the digests, the keys of the results are rewritten by label and seed."""
    kept = json.loads((ROOT / "docs/results/rayflow.json").read_text())["runs"]
    assert set(rayflow_study.run().runs()) == set(kept)
