"""What `ray job submit` runs: `raystill pretrain` (its options: python jobs/pretrain.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("pretrain"))
