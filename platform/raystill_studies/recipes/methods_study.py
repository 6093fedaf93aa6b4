"""Why methods come out of their comparison as they do: a few of its trainings with one thing changed."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raystill.flow.paths import PairedDiffusionPath
from raystill.flow.premetrics import SquaredError
from raystill.methods.rayflow import RayFlow
from raystill_studies.comparison import Comparison, Entrant
from raystill_studies.recipes import methods
from raystill_studies.study import Question, Study, Variant

SHARDS = 12  # of the sample: 3072 pictures in place of 768
TUNED: Mapping[str, Mapping[str, Any]] = {  # what the comparison's trials took
    "RayFlow": {"method.path.sigma": 0.0, "optimizer.learning_rate": 3e-3},
    "RayFlow, paired path": {"optimizer.decay": "cosine", "optimizer.learning_rate": 3e-3},
    "Rectified Diffusion": {"method.premetric": "SquaredError", "optimizer.learning_rate": 0.0010107464386504275},
    "TCD": {"method.intervals": 24, "optimizer.learning_rate": 0.0010107464386504275},
    "TSCD": {"optimizer.decay": "constant", "optimizer.learning_rate": 0.0005173672937096506},
    "LCM": {"method.intervals": 50, "optimizer.learning_rate": 2e-4},
}
LONG = {"RayFlow": 305, "Rectified Diffusion": 285, "TSCD": 234, "LCM": 242}  # updates in its second budget


def run() -> Study:
    """The whole study."""
    comparison = methods.run()
    return Study(
        name="methods_study", base=comparison.base, probe=comparison.probe,
        questions=(pictures(), ladder(), consistency(), bootstrapping(), coupling()),
    )  # fmt: skip


def pictures() -> Question:
    """Students of stored pairs see the same ones again and again."""
    variants = []
    for label in ("RayFlow", "Rectified Diffusion", "TSCD"):
        for shards in (methods.SHARDS, SHARDS):
            title = f"{label}, {256 * shards} pictures"
            variants.append(_trained(label, title, LONG[label], {"targets.shards": shards}))
    slower = {"optimizer.learning_rate": 1e-3, "method.objective.distance": "squared"}
    variants.append(_trained("RayFlow", "RayFlow, 768 pictures, 1e-3 and squared", LONG["RayFlow"], slower))
    return Question(
        title="more pictures", variants=tuple(variants),
        text="As many updates as the comparison's second budget holds, of more pictures. The longer wait for their "
        "targets is not counted: 3072 take nearly all of that budget.",
    )  # fmt: skip


def ladder() -> Question:
    """From RayFlow to Rectified Diffusion, one setting at a time."""
    rungs: tuple[tuple[str, Mapping[str, Any]], ...] = (
        ("RayFlow on the paired path", {}),
        ("and at the learning rate 1e-3", {"optimizer.learning_rate": 1e-3}),
        ("and with a squared distance", {"method.objective.distance": "squared"}),
        ("and at uniform times", {"method.times": "UniformTimes"}),
    )
    changes: dict[str, Any] = {"targets.shards": SHARDS}
    variants = [_trained("RayFlow", "RayFlow", LONG["RayFlow"], changes)]
    for title, change in rungs:
        changes |= change
        variants.append(_trained("RayFlow, paired path", title, LONG["RayFlow"], changes))
    whole = "Rectified Diffusion"
    variants.append(_trained(whole, whole, LONG[whole], {"targets.shards": SHARDS}))
    return Question(
        title="from RayFlow to Rectified Diffusion", variants=tuple(variants),
        text="With 3072 pictures, as above. Every row has the settings of the one before it, and one more; what then "
        "still divides the last two are the consistency stage and 20 updates.",
    )  # fmt: skip


def consistency() -> Question:
    """What the consistency stage of Rectified Diffusion adds to its pairs and path."""
    whole = "Rectified Diffusion"
    return Question(
        title="the consistency stage",
        variants=(
            _trained(whole, whole, 100, {}),
            _trained(whole, "without its consistency stage", 100, {"method.consistency_from": None}),
            _trained("RayFlow", "RayFlow", 100, {}),
        ),
    )


def bootstrapping() -> Question:
    """LCM is its own target, which nothing holds but its lowest interval."""
    fast = {"optimizer.learning_rate": 8e-4}
    return Question(
        title="a student that is its own target",
        variants=(
            _trained("LCM", "LCM, 100 updates", 100, {}),
            _trained("LCM", "242 updates", LONG["LCM"], {}),
            _trained("LCM", "242 updates, target's average 0.95", LONG["LCM"], {"method.target_decay": 0.95}),
            _trained("LCM", "100 updates, learning rate 8e-4", 100, fast),
            _trained("LCM", "the same, squared distance", 100, {**fast, "method.premetric": SquaredError()}),
        ),
    )


def coupling() -> Question:
    """What noise that is dealt out within a batch (2406.12303) adds to a method that noises latents."""
    return Question(
        title="immiscible noise",
        variants=(
            _trained("TCD", "TCD", 100, {}),
            _trained("TCD", "TCD, immiscible noise", 100, {"method.immiscible": True}),
        ),
    )


def _trained(label: str, title: str, steps: int, change: Mapping[str, Any]) -> Variant:
    """A training of the comparison with a change."""
    comparison = methods.run()
    entrants = (*comparison.entrants, paired(comparison))
    entrant = next(one for one in entrants if one.label == label)
    return replace(comparison.variant(entrant, steps, {**TUNED[label], **change}), label=title)


def paired(comparison: Comparison) -> Entrant:
    """RayFlow on the path of Rectified Diffusion, which is its own at sigma 0 since both end where the schedule does
    (`tests/unit/flow/test_ends.py`).
    """
    first = comparison.entrants[0]
    return replace(first, label="RayFlow, paired path", method=RayFlow(path=PairedDiffusionPath()))
