"""Measure many variants of one run, several seeds each, and write the report. Run it again to go on.

python jobs/study.py --recipe rayflow_study --set 'seeds=[0]' --set base.training.steps=50
"""

import sys

from raystill.job import job
from raystill_studies.report import launch_study

if __name__ == "__main__":
    sys.exit(job(__doc__, "rayflow_study", launch_study))
