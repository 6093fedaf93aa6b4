"""The command that builds shards from pictures, and `jobs/shards.py`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from raystill.launch.command import guarded

HELP = "build WebDataset shards from a folder of pictures, or from emoji sets"
TEXT = f"""{HELP[0].upper()}{HELP[1:]}.

raystill shards folder PICTURES --out s3://bucket/prefix
raystill shards emoji --out FOLDER"""
STYLES = ("noto", "twemoji", "openmoji", "fluent-flat", "fluent-modern", "fluent-3d")  # as `data.emoji.SETS` has them
STOPPED = "Delete the shards written so far, which are not all, and start again:"


def add(commands: Any) -> None:
    """Add the command to those of `raystill`."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = commands.add_parser("shards", help=HELP, description=TEXT, formatter_class=layout)
    add_options(parser)
    parser.set_defaults(run=build, stopped=STOPPED)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the two kinds of source with their options."""
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("folder", help="png, jpg and webp files, captions in .txt beside them or metadata.jsonl")
    folder.add_argument("folder", type=Path, help="searched with all folders below it")
    folder.add_argument("--size", type=int, help="scale the shorter side down to so many pixels (default: keep files)")
    folder.add_argument("--allow-empty-caption", action="store_true", help="take pictures without caption, do not stop")
    folder.add_argument("--max-bad-fraction", type=float, default=0.05, help="stop if more are damaged (default 0.05)")
    emoji = kinds.add_parser("emoji", help="emoji sets from the npm registry, on white, with captions from Unicode")
    emoji.add_argument(
        "--sets",
        nargs="+",
        choices=STYLES,
        default=["noto"],
        help=f"drawing styles of {', '.join(STYLES)} (default: noto)",
    )
    emoji.add_argument("--size", type=int, default=64, help="pixels of each side (default: %(default)s)")
    emoji.add_argument("--with-style", action=argparse.BooleanOptionalAction, help="append ', noto style' to captions")
    for kind in (folder, emoji):
        kind.add_argument("--out", required=True, help="s3://bucket/prefix (with AWS_* set) or a local folder")
        kind.add_argument("--per-shard", type=int, default=256, help="samples to a shard (default: %(default)s)")
        kind.add_argument("--seed", type=int, default=0, help="of the shuffled order (default: %(default)s)")


def build(arguments: argparse.Namespace) -> None:
    """Build the shards that were asked for, and print where they are."""
    from raystill.data.build import EmojiBuild, FolderBuild, build_shards, emoji_source, folder_source
    from raystill.data.store import open_store

    settings = {name: value for name, value in vars(arguments).items() if name not in ("run", "stopped")}
    kind, out, per_shard = settings.pop("kind"), settings.pop("out"), settings.pop("per_shard")
    source = folder_source(FolderBuild(**settings)) if kind == "folder" else emoji_source(EmojiBuild(**settings))
    print(build_shards(source, open_store(out), per_shard))


def main() -> None:
    """Entry point of `jobs/shards.py`."""
    parser = argparse.ArgumentParser(description=TEXT, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    sys.exit(guarded(lambda: build(parser.parse_args()), STOPPED))
