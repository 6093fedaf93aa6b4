"""Builds WebDataset shards: `shards.py folder PICTURES --out s3://bucket/prefix`, or `shards.py emoji --out FOLDER`."""

import argparse
import sys
from pathlib import Path

from raystill.data.build import EmojiBuild, FolderBuild, build_shards, emoji_source, folder_source
from raystill.data.emoji import SETS
from raystill.data.store import open_store
from raystill.launch.command import guarded


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    folder = kinds.add_parser("folder", help="png, jpg and webp files, captions in .txt beside them or metadata.jsonl")
    folder.add_argument("folder", type=Path, help="searched with all folders below it")
    folder.add_argument("--size", type=int, help="scale the shorter side down to so many pixels (default: keep files)")
    folder.add_argument("--allow-empty-caption", action="store_true", help="take pictures without caption, do not stop")
    folder.add_argument("--max-bad-fraction", type=float, default=0.05, help="stop if more are damaged (default 0.05)")
    emoji = kinds.add_parser("emoji", help="emoji sets from the npm registry, on white, with captions from Unicode")
    emoji.add_argument("--sets", nargs="+", choices=SETS, default=["noto"], help="drawing styles (default: noto)")
    emoji.add_argument("--size", type=int, default=64, help="pixels of each side (default: %(default)s)")
    emoji.add_argument("--with-style", action=argparse.BooleanOptionalAction, help="append ', noto style' to captions")
    for kind in (folder, emoji):
        kind.add_argument("--out", required=True, help="s3://bucket/prefix (with AWS_* set) or a local folder")
        kind.add_argument("--per-shard", type=int, default=256, help="samples to a shard (default: %(default)s)")
        kind.add_argument("--seed", type=int, default=0, help="of the shuffled order (default: %(default)s)")
    return parser


def main() -> None:
    a = vars(arguments().parse_args())
    kind, out, per_shard = a.pop("kind"), a.pop("out"), a.pop("per_shard")
    source = folder_source(FolderBuild(**a)) if kind == "folder" else emoji_source(EmojiBuild(**a))
    print(build_shards(source, open_store(out), per_shard))


if __name__ == "__main__":
    sys.exit(guarded(main, "Delete the shards written so far, which are not all, and start again:"))
