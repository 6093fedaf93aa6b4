"""What `ray job submit` runs: `raystill bench` (its options: python jobs/bench.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("bench"))
