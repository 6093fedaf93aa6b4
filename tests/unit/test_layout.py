"""Guards on the shape of the repository: each of these was learnt from a failure that is hard to trace."""

import ast
import platform
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = [ROOT / "platform" / name for name in ("raystill", "raystill_studies")]
MODULES = sorted(module for package in PACKAGES for module in package.rglob("*.py"))


def test_there_is_something_to_guard() -> None:
    assert all(package / "__init__.py" in MODULES and (package / "py.typed").is_file() for package in PACKAGES)


def test_pythons_own_platform_module_is_the_one_imported() -> None:
    assert platform.__file__ is not None
    assert Path(platform.__file__).parent == Path(sysconfig.get_path("stdlib"))
    assert not (ROOT / "platform" / "__init__.py").exists()


def test_pythons_own_platform_module_wins_in_the_repository_root() -> None:
    # The current folder comes first on sys.path with -c; `import uuid` is what broke when the folder was a package.
    program = "import platform, uuid; print(platform.__file__)"
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip()).parent == Path(sysconfig.get_path("stdlib"))


def test_every_package_folder_has_an_init_that_re_exports_nothing() -> None:
    for folder in {module.parent for module in MODULES}:
        tree = ast.parse((folder / "__init__.py").read_text())
        assert ast.get_docstring(tree), f"{folder.name}/__init__.py does not say what the package is"
        assert not any(isinstance(line, ast.ImportFrom) for line in tree.body), f"{folder.name}/__init__.py re-exports"


def test_tests_are_no_packages() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_files_can_be_read_in_one_sitting() -> None:
    long = {str(path.relative_to(ROOT)): n for path in MODULES if (n := len(path.read_text().splitlines())) > 400}
    assert long == {}


def test_a_method_is_one_short_file() -> None:
    methods = (ROOT / "platform" / "raystill" / "methods").glob("*.py")
    assert {path.name: n for path in methods if (n := len(path.read_text().splitlines())) > 250} == {}


def test_jobs_are_thin() -> None:
    # A Ray worker pickles what __main__ defines by value, so that a job holds as little as possible.
    jobs = sorted((ROOT / "jobs").glob("*.py"))
    long = {path.name: n for path in jobs if (n := len(path.read_text().splitlines())) > 40}
    assert long == {}


def test_no_module_is_a_drawer_for_anything() -> None:
    names = {part for module in MODULES for part in module.relative_to(ROOT / "platform").with_suffix("").parts}
    assert names.isdisjoint({"utils", "util", "common", "helpers", "core", "misc"})
