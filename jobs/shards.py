"""What `ray job submit` runs: `raystill shards` (its options: python jobs/shards.py --help)."""

from raystill.cli.shards import main

if __name__ == "__main__":
    main()
