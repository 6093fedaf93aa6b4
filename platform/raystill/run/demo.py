"""The demo: the main job from beginning to end on this machine, and a report on it."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from raystill.config.home import DIRECTORY
from raystill.launch.command import shown
from raystill.run.distill import DistillationResult, Seconds
from raystill.run.evaluate import table
from raystill.run.jobs import launch_distillation
from raystill.run.settings import Run
from raystill.tracking.registry import Registration

REPORT = DIRECTORY / "demo" / "report.json"


def demo(run: Run) -> str:
    """Distil, pull the adapter in a fresh process, draw with it, and write the report; return its summary."""
    seconds = Seconds()
    done = launch_distillation(run, seconds=seconds)
    registered = done.registered
    assert registered is not None  # the command has looked for MLflow
    picture = REPORT.parent / "grid.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(done.picture.read_bytes())
    drawn = REPORT.parent / "red-heart.png"
    with seconds.stage("pull"):
        _cli("pull", registered.uri)
        _cli("sample", "a red heart", "--model", registered.uri, "--steps", "4", "--out", str(drawn))
    REPORT.write_text(json.dumps(report(run, done, registered, picture, seconds), indent=1) + "\n")
    return summary(run, done, registered, picture, drawn, seconds)


def _cli(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "raystill.cli", *arguments], check=True)


def report(
    run: Run, done: DistillationResult, registered: Registration, picture: Path, seconds: Seconds
) -> dict[str, Any]:
    """The demo's report, for programs to read: figures, files, seconds and the adapter's place in the registry."""
    return {
        "teacher": done.evaluated.teacher,
        "student": done.evaluated.student,
        "features": done.evaluated.features,
        "adapter_uri": registered.uri,
        "adapter_version": registered.version,
        "promotion": asdict(registered.promotion),
        "picture": str(picture),
        "seconds": {name: round(value, 1) for name, value in seconds.stages.items()},
        "world_size": run.cluster.workers,
        "zero_stage": run.cluster.zero_stage,
    }


def summary(
    run: Run, done: DistillationResult, registered: Registration, picture: Path, drawn: Path, seconds: Seconds
) -> str:
    """The demo's summary as text: the figures, where everything is, and what to try next."""
    spent = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.stages.items())
    raystill = shown(Path(sys.executable).with_name("raystill"))
    promotion = registered.promotion
    champion = "champion" if promotion.champion else f"candidate ({promotion.reason})"
    return "\n".join([
        "",
        f"Frechet distances on {done.evaluated.features} features, {run.evaluation.shards} shards of captions:",
        table(done.evaluated),
        done.left_out,
        f"picture    {picture}",
        f"drawn with the pulled adapter: {drawn}",
        f"registry   {registered.uri}, {champion}",
        f"report     {REPORT}",
        f"seconds    {spent}; all {sum(seconds.stages.values()):.0f} s",
        "",
        "Next:",
        f'  {raystill} sample "a blue car" --model models:/{run.model}@champion --steps 2 --out car.png',
        f"  {raystill} distill --recipe nano --set method.path.sigma=0.05",
        f"  {raystill} ui",
    ])  # fmt: skip
