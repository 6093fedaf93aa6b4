"""What `ray job submit` runs: `raystill compare` (its options: python jobs/compare.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("compare"))
