"""Measure the loop (engine, data, tracking) against the bare forward and backward of the same model, in one run.

python jobs/bench.py --recipe nano --set cluster.zero_stage=1
"""

import sys

from raystill.job import job
from raystill.run.bench import bench

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano", bench))
