"""What is installed on demand, and what is said where it is not."""

import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from raystill.config.errors import UserError
from raystill.config.extras import EXTRAS, explained, need

PROJECT = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_module_of_an_extra_is_of_a_package_that_the_extra_installs(extra: str) -> None:
    lines = PROJECT["optional-dependencies"][extra]
    installs = {canonicalize_name(Requirement(line).name) for line in lines}
    owners = packages_distributions()
    for module in EXTRAS[extra]:
        assert {canonicalize_name(owner) for owner in owners[module]} & installs


def test_what_is_missing_is_named_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    need("cluster", "a sweep")
    monkeypatch.setitem(sys.modules, "optuna", None)
    told = r"a sweep needs optuna, which is not installed here: pip install 'raystill\[cluster\]'; or do without$"
    with pytest.raises(UserError, match=told):
        need("cluster", "a sweep", "do without")


def test_only_modules_of_extras_are_explained() -> None:
    told = explained(ModuleNotFoundError("No module named 'ray.train'", name="ray.train"))
    assert str(told) == "this needs ray, which is not installed here: pip install 'raystill[cluster]'"
    assert explained(ModuleNotFoundError("No module named 'mine'", name="mine")) is None
