"""What `ray job submit` runs: `raystill distill` (its options: python jobs/distill.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("distill"))
