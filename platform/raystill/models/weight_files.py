"""Which files of a pipeline hold the weights that are read: whole or in parts, a variant where there is no other."""

import re
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from raystill.config.errors import UserError

# Names of settings, vocabularies, and weights without a variant (such as fp16), whole or in parts. Neither weights in
# other formats match, nor files that people or file managers leave there.
PLAIN = re.compile(r"[^.]+\.(json|txt|model|safetensors)|[^.]+\.safetensors\.index\.json")
VARIANT = re.compile(
    r"[^.]+\.(?P<one>[a-z]+\d*)(-\d+-of-\d+)?\.safetensors|[^.]+\.safetensors\.index\.(?P<many>[a-z]+\d*)\.json"
)
PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".msgpack")
VARIANTS = ("fp16", "bf16")  # in the order in which they are taken


def read_files(files: Iterable[Path]) -> list[Path]:
    """Those files of a pipeline's part that a loader reads: a variant's weights where there are no plain ones."""
    every = list(files)
    names = set(chosen([file.name for file in every]))
    return [file for file in every if file.name in names]


def chosen(names: Sequence[str]) -> list[str]:
    """The same by names."""
    plain = [name for name in names if PLAIN.fullmatch(name)]
    if any(name.endswith(".safetensors") for name in plain):
        return plain
    variant = _variant(names)
    return plain + [name for name in names if variant is not None and _variant_of(name) == variant]


def weight_variant(directory: Path, parts: Iterable[str]) -> str | None:
    """The variant of the weights of a pipeline's parts that have no plain ones, by diffusers' name; None where every
    part has plain ones. UserError where a part has pickled weights only, or where two parts have different variants
    only.
    """
    found = {}
    for name in parts:
        files = [file.name for file in (directory / name).glob("*") if file.is_file()]
        if any(PLAIN.fullmatch(file) and file.endswith(".safetensors") for file in files):
            continue
        if (variant := _variant(files)) is not None:
            found[name] = variant
        elif pickled := sorted(file for file in files if file.endswith(PICKLED)):
            raise UserError(_pickled(directory, name, pickled))
    if len(set(found.values())) > 1:
        told = ", ".join(f"{name} in {variant}" for name, variant in found.items())
        raise UserError(f"{directory} has weights of different variants only: {told}; save them as one variant")
    return next(iter(found.values()), None)


def _pickled(directory: Path, name: str, files: list[str]) -> str:
    code = (
        f"from diffusers import DiffusionPipeline as P; "
        f"P.from_pretrained({str(directory)!r}, use_safetensors=False).save_pretrained({f'{directory}-safe'!r})"
    )
    return (
        f"{directory / name} has pickled weights only ({', '.join(files[:3])}), which can run anything when they are "
        f"read, and are not read here. Where you trust them, write them anew: python -c {shlex.quote(code)}"
    )


def _variant(names: Iterable[str]) -> str | None:
    """The first of VARIANTS that there are weights of among files, else any other one."""
    there = {found for name in names if (found := _variant_of(name))}
    known = [name for name in VARIANTS if name in there]
    return next(iter([*known, *sorted(there)]), None)


def _variant_of(name: str) -> str | None:
    """The variant in a weight file's name; None where it has none."""
    found = VARIANT.fullmatch(name)
    return None if found is None else found["one"] or found["many"]
