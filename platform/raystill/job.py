"""What the scripts in `jobs/` have in common: arguments, a recipe, overrides, one call."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any, get_type_hints

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.config.overrides import override, parse_assignments, paths
from raystill.launch.command import guarded
from raystill.recipes.resolve import resolve

JOBS = {  # type of settings -> the jobs that take it
    "Run": "jobs/demo.py, distill.py, targets.py, evaluate.py and bench.py",
    "Pretraining": "jobs/pretrain.py",
    "Study": "jobs/study.py",
    "Search": "jobs/search.py",
    "Comparison": "jobs/compare.py",
}


def job(description: str | None, recipe: str, action: Callable[..., object], *, local: bool = True) -> int:
    """Run a job's command line: resolve the recipe that was typed (`recipe` by default), override it, and print what
    `action(run, local=...)` gives; return the exit status. The annotation of `action`'s first parameter says which
    settings it takes. With `local` False, for actions that need a cluster, the action is called without `local`, and
    there is no `--local`.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--recipe",
        default=recipe,
        help="NAME[:FUNCTION] of a shipped recipe, or FILE.py[:FUNCTION] (default: %(default)s)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="PATH=VALUE",
        help="override a setting by its dotted path; repeatable",
    )
    if local:
        parser.add_argument("--local", action="store_true", help="run in this process: one device, plain torch, no Ray")
    parser.add_argument("--show", action="store_true", help="print the resolved settings with their paths, and stop")
    typed = parser.parse_args()
    check = partial(_check_kind, typed.recipe, recipe, _settings_of(action))
    return guarded(partial(_act, typed, check, partial(action, local=typed.local) if local else action))


def _act(typed: argparse.Namespace, check: Callable[[Any], None], action: Callable[[Any], object]) -> None:
    found = resolve(typed.recipe)
    check(found)
    run = override(found, parse_assignments(typed.set))
    print(shown(run) if typed.show else action(run))


def _settings_of(action: Callable[..., object]) -> type:
    """The type of settings that an action takes: the annotation of its first parameter."""
    kind: type = next(iter(get_type_hints(action).values()))
    return kind


def _check_kind(recipe: str, usual: str, wanted: type, found: object) -> None:
    """Refuse, with UserError, a recipe for another job."""
    if not isinstance(found, wanted):
        kind = type(found).__name__
        others = f", for {JOBS[kind]}" if kind in JOBS else ""
        raise UserError(
            f"recipe {recipe!r} gives a {kind}{others}; {JOBS[wanted.__name__]} takes a {wanted.__name__}, "
            f"such as --recipe {usual} gives"
        )


def shown(run: Any) -> str:
    """Every setting of a run as `--set` takes it, and the fingerprint of those that results depend on."""
    return "\n".join([*(f"{path}={value}" for path, value in paths(run).items()), f"# fingerprint {fingerprint(run)}"])
