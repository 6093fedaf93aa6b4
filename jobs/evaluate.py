"""Evaluate a finished training, once per seed of the starts, and print the spread over the seeds.

python jobs/evaluate.py --recipe nano
python jobs/evaluate.py --recipe nano --set 'evaluation.teacher_steps=[1,4]' --set evaluation.reference_steps=8
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.command import arguments, guarded, show
from raystill.orchestration.evaluate import spread, table
from raystill.orchestration.launch import launch_evaluation
from raystill.recipes.resolve import resolve

SEEDS = (1000, 1001, 1002)


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    evaluated = launch_evaluation(run, SEEDS, local=given.local)
    print("\n\n".join([*(table(one) for one in evaluated), spread(evaluated)]))


if __name__ == "__main__":
    sys.exit(guarded(main))
