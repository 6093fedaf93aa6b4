"""The command line `raystill`: all commands by name. Nothing heavy is imported before a command runs."""

import argparse
import difflib
import re
import sys
from functools import partial
from typing import NoReturn

from raystill.cli import adapters, jobs, services, shards, work
from raystill.launch.command import KEPT, guarded

TEXT = "Distil text-to-image diffusion models into few-step students, and use the adapters that come out."


def main() -> None:
    """Entry point of `raystill`."""
    arguments = parser().parse_args()
    sys.exit(guarded(partial(arguments.run, arguments), arguments.stopped))


class _Parser(argparse.ArgumentParser):
    """A parser that gives the nearest of its commands where there is none of a name."""

    def error(self, message: str) -> NoReturn:
        """Print an error, and end with status 2."""
        unknown = re.search(r"invalid choice: '(.*?)' \(choose from", message)
        below = [action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)]
        if unknown and below:
            near = difflib.get_close_matches(unknown[1], below[0], n=2)
            said = f"; did you mean {' or '.join(near)}?" if near else "."
            message = f"there is no command {unknown[1]!r}{said} All of them: {self.prog} --help"
        super().error(message)


def parser() -> argparse.ArgumentParser:
    """The options of every command."""
    found = _Parser(prog="raystill", description=TEXT)
    found.set_defaults(stopped=KEPT)
    commands = found.add_subparsers(required=True, metavar="COMMAND")
    for group in (jobs, shards, adapters, work, services):
        group.add(commands)
    return found
