"""The whole platform on this machine: store, targets, distillation, evaluation, registry, pull. `make demo` runs it.

python jobs/demo.py --set training.steps=300
"""

import sys

from raystill.job import job
from raystill.run.demo import demo

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano", demo, local=False))
