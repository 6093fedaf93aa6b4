"""Distil a teacher into a few-step student: targets, training, evaluation, registration. Run it again to resume.

python jobs/distill.py --recipe nano --set method.path.sigma=0.05 --set training.steps=1000
python jobs/distill.py --recipe my_recipe.py:run --show
"""

import sys

from raystill.job import job
from raystill.run.jobs import launch_distillation

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano", launch_distillation))
