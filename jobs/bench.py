"""Measure the loop (engine, data, tracking) against the bare forward and backward of the same model, in one run.

python jobs/bench.py --recipe nano --set cluster.zero_stage=1
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.bench import bench
from raystill.orchestration.command import arguments, guarded, show
from raystill.recipes.resolve import resolve


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    print(bench(run))


if __name__ == "__main__":
    sys.exit(guarded(main))
