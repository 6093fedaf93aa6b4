"""What the scripts in `jobs/` have in common: arguments, a recipe, overrides, one call."""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from raystill.config.digest import digest
from raystill.config.overrides import override, parse_assignments, paths
from raystill.orchestration.command import guarded
from raystill.recipes.resolve import resolve


def job(description: str | None, recipe: str, action: Callable[..., object], *, local: bool = True) -> int:
    """Resolve the recipe that was typed (`recipe` by default), override it, print what `action(run, local=...)` gives;
    returns the exit status. An action of a cluster only is called without `local` and does not offer `--local`.
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
    return guarded(partial(_act, typed, partial(action, local=typed.local) if local else action))


def _act(typed: argparse.Namespace, action: Callable[[Any], object]) -> None:
    run = override(resolve(typed.recipe), parse_assignments(typed.set))
    print(shown(run) if typed.show else action(run))


def shown(run: Any) -> str:
    """Every setting as `--set` takes it, and the digest of all."""
    return "\n".join([*(f"{path}={value}" for path, value in paths(run).items()), f"# digest {digest(run)}"])
