"""Distil a teacher into a few-step student: targets, training, evaluation, registration. Run it again to resume.

python jobs/distill.py --recipe nano --set method.path.sigma=0.05 --set training.steps=1000
python jobs/distill.py --recipe my_recipe.py:run --show
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.command import arguments, guarded, show
from raystill.orchestration.evaluate import table
from raystill.orchestration.launch import launch_distillation
from raystill.recipes.resolve import resolve


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    done = launch_distillation(run, local=given.local)
    print(f"{table(done.evaluated)}\n{done.registered.uri}: {done.registered.promotion.reason}\n{done.adapter}")


if __name__ == "__main__":
    sys.exit(guarded(main))
