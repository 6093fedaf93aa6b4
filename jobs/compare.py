"""Compare methods at equal budgets, three seeds each, and write the report. Run it again to go on.

python jobs/compare.py --recipe methods --set seconds=300 --set 'seeds=[0]'
"""

import sys

from raystill.job import job
from raystill_studies.compare import launch_comparison

if __name__ == "__main__":
    sys.exit(job(__doc__, "methods", launch_comparison, local=False))
