"""Compute a run's targets with the frozen teacher, and nothing else; a later distillation finds them.

python jobs/targets.py --recipe nano --set targets.estimator.steps=20
"""

import sys

from raystill.job import job
from raystill.run.jobs import launch_targets

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano", launch_targets))
