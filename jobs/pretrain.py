"""Train a whole Stable Diffusion pipeline from shards: autoencoder, then UNet and text encoder. Run it again to resume.

python jobs/pretrain.py --recipe nano:teacher --set shards=s3://bucket/mine --set output=teachers/mine
"""

import sys

from raystill.job import job
from raystill.run.jobs import launch_pretraining

if __name__ == "__main__":
    sys.exit(job(__doc__, "nano:teacher", launch_pretraining))
