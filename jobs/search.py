"""Search settings of a run with Ray Tune, and register the best trial's adapter. Run it again to go on.

python jobs/search.py --recipe nano_sweep --set trials=16 --set 'steps=[4]'
"""

import sys

from raystill.job import job
from raystill.search.launch import launch_search

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano_sweep", launch_search, local=False))
