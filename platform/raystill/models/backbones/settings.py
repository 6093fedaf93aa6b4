"""The settings of a pipeline's parts, as the small files of its directory have them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raystill.config.errors import UserError

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a pipeline's parts by name, each read at its first use; UserError where a file cannot be read."""

    path: Path
    _read: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)  # by part, and the index by INDEX

    def __getitem__(self, part: str) -> dict[str, Any]:
        """The settings of one part."""
        if part not in self._read:
            self._read[part] = self._load(self.path / part / "config.json")
        return self._read[part]

    @property
    def index(self) -> dict[str, Any]:
        """The pipeline's index: its class, its parts' classes and its own settings; UserError where there is none."""
        if INDEX in self._read:
            return self._read[INDEX]
        if not (self.path / INDEX).is_file():
            found = ", ".join(sorted(p.name for p in self.path.iterdir())[:8]) if self.path.is_dir() else ""
            raise UserError(
                f"{self.here} is not a diffusers pipeline: expected {INDEX} in it, "
                f"found: {found or ('nothing' if self.path.is_dir() else 'no such directory')}.\n"
                "Give a directory that a pipeline's save_pretrained wrote: --set teacher=DIRECTORY"
            )
        return self._read.setdefault(INDEX, self._load(self.path / INDEX))

    @property
    def here(self) -> str:
        """The pipeline in messages."""
        return f"teacher {str(self.path)!r}"

    def part_class(self, part: str) -> str | None:
        """The name of a part's class; None where the pipeline has no such part."""
        entry = self.index.get(part)
        return str(entry[1]) if isinstance(entry, list) and entry[0] else None

    def _load(self, file: Path) -> dict[str, Any]:
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.here}: {file.relative_to(self.path)} cannot be read: {error}") from error
        if not isinstance(found, dict):
            raise UserError(f"{self.here}: {file.relative_to(self.path)} holds a {type(found).__name__}, no settings")
        return found
