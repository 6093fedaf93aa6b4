"""Commands on runs and adapters: fetch them from the registry, list them, draw with them, merge them into pipelines."""

import argparse
from pathlib import Path
from typing import Any

from raystill.cli.registry import DEFAULT_MODEL, directory_of, fetch, registry
from raystill.config.errors import UserError


def add(commands: Any) -> None:
    """Add the commands to those of `raystill`."""
    pull = commands.add_parser("pull", help="fetch an adapter from the registry and check its digests")
    pull.add_argument("model", help="models:/NAME@champion, models:/NAME@candidate or models:/NAME/VERSION")
    pull.add_argument("--to", type=Path, help="an empty directory; default: a cache")
    pull.set_defaults(run=_pull)
    sample = commands.add_parser("sample", help="draw pictures with an adapter, or with a pipeline as it is")
    sample.add_argument("caption", nargs="+", help='what to draw, such as "a red heart"; one row each')
    sample.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help="a registry URI, a directory that `pull` wrote, or a pipeline's own directory (default: %(default)s)",
    )
    sample.add_argument("--steps", type=int, help="network calls per picture; default: the adapter's own")
    sample.add_argument("--guidance", type=float, help="guidance scale of a pipeline without an adapter; 1 is none")
    sample.add_argument("--force", action="store_true", help="draw in a number of steps that it was not trained for")
    sample.add_argument("--count", type=int, default=4, help="pictures per caption (default: %(default)s)")
    sample.add_argument("--seed", type=int, default=0, help="of the starts (default: %(default)s)")
    sample.add_argument("--base", help="directory of the base pipeline; default: where the adapter says")
    sample.add_argument("--out", type=Path, default=Path("grid.png"), help="PNG file to write (default: %(default)s)")
    sample.set_defaults(run=_sample)
    merge = commands.add_parser("merge", help="write a pipeline that has an adapter's weights in its own")
    merge.add_argument("model", help="a registry URI, or a directory that `pull` wrote")
    merge.add_argument("--onto", help="another fine-tune of the adapter's base; default: the base itself")
    merge.add_argument("--out", type=Path, required=True, help="a new directory, in diffusers' format")
    merge.set_defaults(run=_merge)
    models = commands.add_parser("models", help="list the registry's adapters with their figures")
    models.add_argument("name", nargs="?", help="one model, with all its versions; default: every model's newest")
    models.add_argument("--json", action="store_true", help="for machines")
    models.set_defaults(run=_models)
    runs = commands.add_parser("runs", help="list the newest runs with how they ended")
    runs.add_argument("--most", type=int, default=20, help="how many of them (default: %(default)s)")
    runs.add_argument("--json", action="store_true", help="for machines")
    runs.set_defaults(run=_runs)


def _runs(arguments: argparse.Namespace) -> None:
    from raystill.config.home import DIRECTORY

    uri = registry(DIRECTORY)
    from raystill.tracking.listing import runs

    print(runs(uri, most=arguments.most, as_json=arguments.json))


def _pull(arguments: argparse.Namespace) -> None:
    from raystill.models.artifact import verify
    from raystill.models.card import describe

    directory = fetch(arguments.model, arguments.to)
    print(f"{directory}\n{describe(verify(directory))}")


def _sample(arguments: argparse.Namespace) -> None:
    from raystill.evaluation.pictures import grid
    from raystill.models.adapter import Adapter
    from raystill.models.hub import teacher_at
    from raystill.models.pipeline import load_pipeline
    from raystill.models.stock_pipeline import StockPipeline

    if arguments.count < 1:
        raise UserError(f"--count is {arguments.count}; write 1 or more pictures per caption, such as --count 4")
    if arguments.steps is not None and arguments.steps < 1:
        raise UserError(f"--steps is {arguments.steps}; write 1 or more, such as --steps 4")
    captions = [c for c in arguments.caption for _ in range(arguments.count)]
    if (teacher_at(arguments.model) / "model_index.json").is_file():
        if arguments.force or arguments.base is not None:
            raise UserError(f"--force and --base are for adapters; {arguments.model} is a pipeline")
        plain = StockPipeline(load_pipeline(arguments.model), arguments.guidance)
        pictures = plain.draw(captions, arguments.steps, arguments.seed).numpy()
    elif arguments.guidance is not None:
        raise UserError(f"--guidance is for pipelines; {arguments.model} is an adapter, which has its own")
    else:
        adapter = Adapter(directory_of(arguments.model), _place(arguments.base))
        pictures = adapter.draw(captions, arguments.steps, arguments.seed, force=arguments.force).numpy()
    rows = [list(pictures[i : i + arguments.count]) for i in range(0, len(captions), arguments.count)]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    grid(rows, arguments.caption, [""] * arguments.count, scale=3).save(arguments.out)
    print(arguments.out)


def _place(address: str | None) -> Path | None:
    from raystill.models.hub import teacher_at

    return None if address is None else teacher_at(address)


def _merge(arguments: argparse.Namespace) -> None:
    from raystill.models.merging import merge_adapter

    print(merge_adapter(directory_of(arguments.model), _place(arguments.onto), arguments.out))


def _models(arguments: argparse.Namespace) -> None:
    from raystill.config.home import DIRECTORY

    uri = registry(DIRECTORY)
    from raystill.tracking.listing import listing

    print(listing(uri, arguments.name, as_json=arguments.json))
