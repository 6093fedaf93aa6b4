"""What is installed on demand, and what is said where it is not."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from raystill.config.errors import UserError
from raystill.config.extras import EXTRA, explained, need

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("module", EXTRA)
def test_every_module_is_of_a_package_that_its_extra_installs(module: str) -> None:
    lines = PROJECT["optional-dependencies"][EXTRA[module]]
    installs = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = packages_distributions()[module]
    assert {canonicalize_name(owner) for owner in owners} & installs


def test_what_is_missing_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    need("ray", "optuna", purpose="a sweep")
    monkeypatch.setitem(sys.modules, "optuna", None)
    told = r"a sweep needs optuna, which is not installed here: pip install 'raystill\[cluster\]'; or do without$"
    with pytest.raises(UserError, match=told):
        need("ray", "optuna", purpose="a sweep", otherwise="do without")


def test_only_modules_of_extras_that_are_absent_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    absent = ModuleNotFoundError("No module named 'ray.train'", name="ray.train")
    assert explained(absent) is None  # Ray is there, and broken
    monkeypatch.setitem(sys.modules, "ray", None)
    assert str(explained(absent)) == "this needs ray, which is not installed here: pip install 'raystill[cluster]'"
    assert explained(ModuleNotFoundError("No module named 'mine'", name="mine")) is None
