"""The command line `raystill`: all commands by name. Nothing heavy is imported before a command runs."""

import argparse
import sys
from functools import partial

from raystill.cli import adapters, jobs, migrate, services, shards
from raystill.launch.command import KEPT, guarded

TEXT = "Distil text-to-image diffusion models into few-step students, and use the adapters that come out."


def main() -> None:
    """Entry point of `raystill`."""
    arguments = parser().parse_args()
    sys.exit(guarded(partial(arguments.run, arguments), arguments.stopped))


def parser() -> argparse.ArgumentParser:
    """The options of every command."""
    found = argparse.ArgumentParser(prog="raystill", description=TEXT)
    found.set_defaults(stopped=KEPT)
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for group in (jobs, shards, adapters, migrate, services):
        group.add(commands)
    return found
