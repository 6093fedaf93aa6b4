"""A training run as a folder of files, where MLflow is not installed."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from PIL import Image

from raystill.config.digest import canonical
from raystill.tracking.commit import code_commit

METRICS, ABOUT = "metrics.jsonl", "run.json"


class FileRun:
    """Context manager for the folder of one training run: metrics.jsonl has a line for each step, run.json the settings
    and how the run ended, and pictures lie beside them.
    """

    def __init__(self, folder: Path, recipe: object) -> None:
        self.folder, self._recipe = folder, canonical(recipe)
        self._known: dict[str, int] = {}  # metric name -> last step that was logged before

    def __enter__(self) -> "FileRun":
        self.folder.mkdir(parents=True, exist_ok=True)
        self._known = {name: step for step, values in self._rows() for name in values}
        self._note("RUNNING")
        file = self.folder / METRICS
        whole = file.read_bytes() if file.exists() else b""
        self._metrics = file.open("a", buffering=1)  # a line at a time
        self._metrics.truncate(whole.rfind(b"\n") + 1)  # a kill may have cut the last line off
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._metrics.close()
        self._note("FINISHED" if kind is None else "FAILED" if issubclass(kind, Exception) else "KILLED")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Write metrics of one step, but for those that the run has logged before its restart."""
        new = {name: float(value) for name, value in values.items() if step > self._known.get(name, -1)}
        if new:
            self._metrics.write(json.dumps({"step": step, **new}) + "\n")

    def picture(self, name: str, picture: Image.Image, step: int) -> None:
        """Write a picture of one step."""
        file = self.folder / f"{name}-{step}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        picture.save(file)

    def history(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(step, values[name]) for step, values in self._rows() if name in values]

    def _rows(self) -> list[tuple[int, dict[str, float]]]:
        file = self.folder / METRICS
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("\n")]  # the last one may be cut off by a kill
        return [(row.pop("step"), row) for row in rows]

    def _note(self, status: str) -> None:
        about = {"status": status, "commit": code_commit(), "recipe": self._recipe}
        (self.folder / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
