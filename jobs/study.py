"""What `ray job submit` runs: `raystill study` (its options: python jobs/study.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("study"))
