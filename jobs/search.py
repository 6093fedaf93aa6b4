"""What `ray job submit` runs: `raystill search` (its options: python jobs/search.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("search"))
