"""Recipes are found by name or in anybody's file, and say what there is where they are not."""

import importlib
import shlex
from pathlib import Path

import pytest

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.config.overrides import override, parse_assignments, paths
from raystill.recipes.resolve import advice, resolve
from raystill.run.settings import Pretraining, Run


def test_shipped_recipes_are_complete_and_pass_their_own_checks() -> None:
    for name, kind in (("nano", Run), ("nano:open_ended", Run), ("nano:control", Run), ("nano:teacher", Pretraining)):
        run = resolve(name)
        assert isinstance(run, kind)
        run.check()


def test_a_function_in_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.py"
    mine.write_text("from raystill.recipes.nano import run as nano\n\ndef small():\n    return nano()\n")
    assert fingerprint(resolve(f"{mine}:small")) == fingerprint(resolve("nano"))
    with pytest.raises(UserError, match=r"no function 'run'; it has: small"):
        resolve(str(mine))
    with pytest.raises(UserError, match=r"there is no file .*absent.py"):
        resolve(str(tmp_path / "absent.py"))


def test_an_unknown_name_lists_the_shipped_ones() -> None:
    with pytest.raises(UserError, match=r"did you mean nano or .* shipped are: methods, methods_study, nano"):
        resolve("nanoo")


def words_after_set(said: str) -> list[int]:
    return [i + 1 for i, word in enumerate(shlex.split(said)) if word == "--set"]


def test_another_method_in_a_recipe_is_told_what_its_own_recipe_has() -> None:
    run = resolve("nano")
    assert advice(run, override(run, {"method": "LCM"}), ["method"]) == (
        "LCM has a recipe of its own, --recipe lcm_nano; this run differs from it, which has --set "
        "name=lcm-nano --set model=nano-lcm --set optimizer.learning_rate=0.0002 --set targets.estimator=Encoding"
    )
    for method in ("LCM", "Lightning", "RectifiedDiffusion", "CTM", "DMD2"):
        said = advice(run, override(run, {"method": method}), ["method"])
        told = {"method": method, **parse_assignments(shlex.split(said)[i] for i in words_after_set(said))}
        assert advice(run, override(run, told), ["method"]) == ""
        override(run, told).check()
    rate = {"method": "LCM", "optimizer.learning_rate": 5e-4}
    assert "learning_rate" not in advice(run, override(run, rate), rate)
    assert advice(run, override(run, {"method.path.sigma": 0.1}), ["method.path.sigma"]) == ""
    reflow = advice(run, override(run, {"method": "Reflow"}), ["method"])  # whose recipe has the demo's settings
    assert reflow.endswith("which has --set name=reflow-nano --set model=nano-reflow")


def test_a_method_without_a_recipe_is_not_called_as_another(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from raystill.methods.reflow import Reflow\n\n"
        "@dataclass(frozen=True, kw_only=True)\n"
        "class Mine(Reflow):\n"
        "    name = 'mine'\n"
    )
    run, typed = resolve("nano"), {"method": f"{tmp_path / 'mine.py'}:Mine"}
    said = "Mine has no recipe, and this run is called as those of RayFlow are: --set name=... --set model=..."
    assert advice(run, override(run, typed), typed) == said
    typed |= {"name": "mine", "model": "mine"}
    assert advice(run, override(run, typed), typed) == ""


def test_sigma_is_a_field_of_the_path_and_changes_the_fingerprint() -> None:
    run = resolve("nano")
    changed = override(run, {"method.path.sigma": 0.1})
    assert paths(changed)["method.path.sigma"] == 0.1
    assert fingerprint(changed) != fingerprint(run)
    assert fingerprint(changed.task) != fingerprint(run.task)
    assert fingerprint(changed.targets) == fingerprint(run.targets)  # a sweep over sigma computes targets once


def test_the_control_differs_in_its_targets_only() -> None:
    run, control = paths(resolve("nano:open_ended")), paths(resolve("nano:control"))
    differing = {name for name in run.keys() & control.keys() if run[name] != control[name]}
    assert differing == {"name", "model"}
    assert all(name.startswith("targets.estimator.") for name in run.keys() ^ control.keys())


@pytest.mark.parametrize(
    ("module", "former", "now"),
    [
        ("raystill.targets.targets", "Generated", "Generation"),
        ("raystill.targets.estimators", "Assigned", "Assignment"),
        ("raystill.methods.rectified", "Rectified", "RectifiedDiffusion"),
        ("raystill.flow.premetrics", "Squared", "SquaredError"),
    ],
)
def test_recipes_of_files_import_classes_by_their_former_names(
    module: str, former: str, now: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(f"from {module} import {former}\n\n\ndef run():\n    return {former}\n")
    assert resolve(str(tmp_path / "mine.py")).__name__ == now
    assert f"{former} is called {now} now; the old name works for one more release" in caplog.messages
    with pytest.raises(AttributeError, match="has no attribute 'Nobody'"):
        vars(importlib.import_module(module))["__getattr__"]("Nobody")
