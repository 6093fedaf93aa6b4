"""What `ray job submit` runs: `raystill targets` (its options: python jobs/targets.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("targets"))
