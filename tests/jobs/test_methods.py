"""Every recipe of a method, small: from pictures to an adapter that draws."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.workplace import SMALL

from raystill.config.errors import UserError
from raystill.config.overrides import override, parse_assignments
from raystill.data.local import LocalStore
from raystill.data.records import unpack_row
from raystill.data.shards import unpack
from raystill.data.starts import start_of
from raystill.methods.ctm import CTM
from raystill.methods.dmd2 import DMD2
from raystill.methods.rayflow import RayFlow
from raystill.methods.table import METHODS
from raystill.models.adapter import Adapter
from raystill.models.artifact import verify
from raystill.models.merging import merge_adapter
from raystill.models.pipeline import load_pipeline
from raystill.recipes import nano_methods
from raystill.recipes.resolve import resolve
from raystill.run.distill import DistillationResult
from raystill.run.jobs import launch_distillation
from raystill.run.settings import Run
from raystill.targets.targets import Generation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
RECIPES = sorted(name for name in vars(nano_methods) if name.endswith("_nano"))
ONE_EACH = {type(resolve(name).method): name for name in RECIPES}
FULL_FIRST = {RayFlow, CTM, DMD2}  # one role, a student that is told more, two roles of one size


def small(recipe: str, **changes: Any) -> Run:
    run: Run = resolve(recipe)
    settings = parse_assignments(f"{path}={value}" for path, value in SMALL.items())
    if not isinstance(run.targets.estimator, Generation):
        del settings["targets.estimator.solver_steps"]
    if "weights" in changes:
        settings = {path: value for path, value in settings.items() if not path.startswith("weights.")}
    else:
        settings["weights.targets"] = ("to_q", "to_v", "conv1")  # each place of an adapter takes time
    stages = {"stage_steps": 1, "one_step_from": 3, "consistency_from": 3}  # every stage has its turn in six steps
    own = {f"method.{name}": n for name, n in stages.items() if getattr(run.method, name, None) is not None}
    places = {"shards": "few", "sample": None, "store": "environment", "artifacts": None, "work": "work"}
    return override(run, {"teacher": "teachers/tiny", **settings, **own, **places, **changes})


@pytest.fixture
def here(workplace: Path, few: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(workplace)
    (workplace / "work").mkdir(exist_ok=True)
    return workplace


def test_every_method_has_a_recipe() -> None:
    assert set(ONE_EACH) == set(METHODS)
    for name in RECIPES:
        resolve(name).check()


def measured_is_shipped(run: Run, distilled: DistillationResult) -> None:
    """The pictures that were measured are those that the registered adapter draws from the same starts."""
    adapter = Adapter(distilled.adapter)
    place = max((Path(run.work) / "student-samples").iterdir(), key=lambda folder: folder.stat().st_mtime_ns)
    newest = LocalStore(uri=str(place))
    rows = [unpack_row(sample) for sample in unpack(newest.read("000000.tar"), "000000.tar")][:3]
    shape, count = adapter.pipeline.latent_shape, run.evaluation.student_steps[-1]
    start = torch.stack([start_of(row["key"], run.evaluation.seed, shape) for row in rows])
    latents = adapter.sample(start, adapter.pipeline.condition([row["caption"] for row in rows]), count)
    found, measured = adapter.pipeline.decode(latents).int(), np.stack([row[f"image_{count}"] for row in rows])
    assert int((found - torch.from_numpy(measured).int()).abs().max()) <= 1  # a batch of another size


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_distils_an_adapter_that_draws_by_itself(name: str, here: Path) -> None:
    distilled = launch_distillation(small(name), local=True)
    card = verify(distilled.adapter)
    assert card.method == resolve(name).method.name
    assert distilled.registered is not None
    assert distilled.registered.uri == f"models:/{resolve(name).model}/1"
    drawn = Adapter(distilled.adapter).draw(["red heart", "cat face"])
    assert drawn.shape == (2, 32, 32, 3)
    measured_is_shipped(small(name), distilled)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if method in FULL_FIRST else [pytest.mark.second])
        for method, name in ONE_EACH.items()
    ],
)
def test_full_training_carries_what_all_weights_have_gained(name: str, here: Path) -> None:
    run = small(name, weights="Full", name=f"full-{name}", model=f"full-{name}")
    assert run.training.steps > run.method.last_stage[1]
    distilled = launch_distillation(run, local=True)
    card = verify(distilled.adapter)
    assert "unet_delta.safetensors" in card.files
    drawn = Adapter(distilled.adapter).draw(["red heart"], seed=3)
    assert drawn.shape == (1, 32, 32, 3)
    measured_is_shipped(run, distilled)
    readme = (distilled.adapter / "README.md").read_text()
    assert "unet_delta.safetensors" in readme
    assert f"pipeline({distilled.evaluated.captions[0]!r}, num_inference_steps=" in readme
    merged = here / f"merged-{name}"
    if run.method.tells_landing:
        with pytest.raises(UserError, match="a CTM student is told where each step lands"):
            merge_adapter(distilled.adapter, None, merged)
        return
    merge_adapter(distilled.adapter, None, merged)
    found, base = load_pipeline(merged).network, load_pipeline(run.teacher).network
    for weight, gained in load_file(distilled.adapter / "unet_delta.safetensors").items():
        torch.testing.assert_close(found.get_parameter(weight), base.get_parameter(weight) + gained)


def test_a_merged_student_is_the_teacher_of_a_second_reflow(here: Path) -> None:
    first = launch_distillation(small("reflow_nano", name="first"), local=True)
    said = merge_adapter(first.adapter, None, here / "straight")
    assert "the adapter on its base, teachers/tiny" in said
    starts = {"targets.estimator.guidance": 1.0, "evaluation.guidance": 1.0, "name": "second", "model": "second"}
    run = override(small("reflow_nano"), {**starts, "teacher": str(here / "straight")})
    second = launch_distillation(run, local=True)
    one, two = first.evaluated.student["2"]["frechet"], second.evaluated.teacher["2"]["frechet"]
    assert two == pytest.approx(one, rel=1e-3)  # the student of the first is the teacher of the second
    assert Adapter(second.adapter).draw(["red heart"]).shape == (1, 32, 32, 3)


@pytest.mark.parametrize(
    ("recipe", "changes", "message"),
    [
        (
            "dmd2_nano",
            {"method.features": ("mid_block", "attic")},
            r"names attic, and the teacher's network has down_blocks.0",
        ),
        ("reflow_nano", {"targets.estimator": "Encoding"}, "Reflow needs target_mean, which Encoding does not make"),
        ("perflow_nano", {"evaluation.student_steps": (2, 4)}, r"has \[2\], and PeRFlow takes a step in each of its 4"),
        (
            "phased_nano",
            {"evaluation.student_steps": (2, 4, 6)},
            r"has \[2, 6\], and a student of method.windows ending",
        ),
        ("tscd_nano", {"method.segments": (7,)}, r"method.segments is \(7,\) .* --set method.intervals=42$"),
        (
            "tscd_nano",
            {"method.segments": (8, 4)},
            r"has \[1, 2\], and a student of method.segments ending in 4 takes 4",
        ),
        ("tcd_nano", {"method.segments": ()}, r"method.segments is \(\): --set 'method.segments=\[8, 4, 2, 1\]'"),
        ("tcd_nano", {"method.intervals": 0}, "method.intervals is 0 and method.target_decay None; write 1 or more"),
        (
            "tcd_nano",
            {"evaluation.student_steps": (4, 2000)},
            "steps is 2000, and the teacher knows 1000 times",
        ),
        ("lcm_nano", {"method.target_decay": 1.7}, "target_decay 1.7; write 1 or more, and a share below 1"),
        ("lcm_nano", {"method.intervals": 24}, "does not divide the teacher's 1000 times.*--set method.intervals=25$"),
        ("scott_nano", {"method.intervals": 4}, r"has \[8\], and the student is asked at 4 times .*intervals=8$"),
        ("ctm_nano", {"method.intervals": 5000}, "method.intervals is 5000, and the teacher knows 1000 times"),
        ("dmd2_nano", {"method.student_steps": 5000}, "method.student_steps is 5000, and the teacher knows 1000 times"),
        ("add_nano", {"method.features": ("attic",)}, r"names attic, and the teacher's network has down_blocks.0"),
        ("lightning_nano", {"method.features": ("attic",)}, r"names attic, and the teacher's network has down_blocks"),
        ("lightning_nano", {"method.stages": (32, 4)}, r"has \[1, 2\], and a student of method.stages ending in 4"),
        (
            "instaflow_nano",
            {"method.one_step_from": 50},
            "training.steps is 6, and the last stage of reflow begins at step 50: --set training.steps=75",
        ),
        ("lightning_nano", {"method.stages": (32, 12)}, "every number of steps divides the one before"),
        ("lcm_nano", {"sampling.eta": 0.5}, "sampling.eta is 0.5, of which lcm's sampler knows nothing"),
        ("tcd_nano", {"sampling.jump": "anchored"}, "tcd holds no target mean"),
        ("perflow_nano", {"method.target": "velocity"}, "PeRFlow's velocity is the one of a flow-matching teacher"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_starts(
    recipe: str, changes: dict[str, Any], message: str, here: Path
) -> None:
    estimator = changes.pop("targets.estimator", None)
    run = small(recipe, **changes) if estimator is None else override(resolve(recipe), {"targets.estimator": estimator})
    with pytest.raises(UserError, match=message):
        launch_distillation(override(run, {"teacher": "teachers/tiny"}), local=True)


@pytest.mark.parametrize(
    ("recipe", "changes", "steps"),
    [
        ("perflow_nano", {"method.windows": 8}, (8, 16)),
        ("phased_nano", {"method.windows": 8}, (8, 16)),
        ("phased_nano", {"method.windows": 3}, (3, 6)),
        ("tscd_nano", {"method.segments": (8,)}, (8, 16)),
        ("lightning_nano", {"method.stages": (32, 8)}, (8, 16)),
    ],
)
def test_what_a_refusal_says_to_write_is_taken(recipe: str, changes: dict[str, Any], steps: tuple[int, ...]) -> None:
    """Students of more than four parts, as published ones are, too."""
    run = override(resolve(recipe), changes)
    with pytest.raises(UserError, match=r"evaluation\.student_steps has") as refused:
        run.check()
    advice = re.search(r"--set '(evaluation.student_steps=[^']*)'", str(refused.value))
    assert advice is not None
    advised = override(run, parse_assignments([advice[1]]))
    assert advised.evaluation.student_steps == steps
    advised.check()


def test_a_teacher_that_is_told_of_a_time_already_is_refused_for_ctm(here: Path) -> None:
    """By its settings alone: its weights, which do not fit them, are never read."""
    told = here / "told"
    shutil.copytree(here / "teachers/tiny", told, dirs_exist_ok=True)
    config = told / "unet/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"time_cond_proj_dim": 256}))
    with pytest.raises(UserError, match=r"has a condition of the time already .* --set method=TCD"):
        launch_distillation(small("ctm_nano", teacher=str(told)), local=True)
