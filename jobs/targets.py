"""Compute a run's targets with the frozen teacher, and nothing else; a later distillation finds them.

python jobs/targets.py --recipe nano --set targets.estimator.steps=20
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.command import arguments, guarded, show
from raystill.orchestration.launch import launch_targets
from raystill.recipes.resolve import resolve


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    print(launch_targets(run, local=given.local))


if __name__ == "__main__":
    sys.exit(guarded(main))
