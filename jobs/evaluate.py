"""Evaluate a finished training, once per seed of the starts; print the spread over seeds and the distances' floor.

python jobs/evaluate.py --recipe nano
python jobs/evaluate.py --recipe nano --set 'evaluation.teacher_steps=[1,4]' --set evaluation.reference_steps=8
"""

import sys

from raystill.job import job
from raystill.run.jobs import launch_evaluation

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano", launch_evaluation))
