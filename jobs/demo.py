"""What `ray job submit` runs: `raystill demo` (its options: python jobs/demo.py --help)."""

import sys

from raystill.cli.jobs import main

if __name__ == "__main__":
    sys.exit(main("demo"))
