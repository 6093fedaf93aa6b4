"""Train a whole Stable Diffusion pipeline from shards: autoencoder, then UNet and text encoder. Run it again to resume.

python jobs/pretrain.py --recipe nano:teacher --set shards=s3://bucket/mine --set output=teachers/mine
"""

import sys

from raystill.config.overrides import override
from raystill.orchestration.command import arguments, guarded, show
from raystill.orchestration.launch import launch_pretraining
from raystill.recipes.resolve import resolve


def main() -> None:
    """Parse, resolve, override, one call."""
    given = arguments(__doc__, recipe="nano:teacher")
    run = override(resolve(given.recipe), given.changes)
    if given.show:
        show(run)
        return
    print(launch_pretraining(run, local=given.local))


if __name__ == "__main__":
    sys.exit(guarded(main))
