"""The whole platform on this machine: store, targets, distillation, evaluation, registry, pull. `make demo` runs it.

python jobs/demo.py --set training.steps=300
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.command import arguments, guarded, show
from raystill.orchestration.demo import demo
from raystill.recipes.resolve import resolve


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    demo(run)


if __name__ == "__main__":
    sys.exit(guarded(main))
