"""What `ray job submit` runs: `raystill evaluate` (its options: python jobs/evaluate.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("evaluate"))
