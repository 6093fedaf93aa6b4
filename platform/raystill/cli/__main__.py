"""`python -m raystill.cli` is `raystill`."""

from raystill.cli.main import main

if __name__ == "__main__":
    main()
