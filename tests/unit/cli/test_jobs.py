"""The commands that take a recipe, and the scripts of `jobs/`: what they print without running anything."""

import argparse
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from raystill.cli import jobs
from raystill.cli.jobs import JOBS
from raystill.cli.main import main, parser
from raystill.cli.shards import STYLES
from raystill.data.emoji import SETS

ROOT = Path(__file__).parents[3]
SCRIPTS = sorted(path for path in (ROOT / "jobs").glob("*.py") if path.stem != "shards")
# Every command with its options and their defaults: whoever changes this breaks lines that people have written down.
COMMANDS = """
bench --recipe=nano --set=[] --local=False --show=False
compare --recipe=methods --set=[] --show=False
demo --recipe=nano --set=[] --show=False
distill --recipe=nano --set=[] --local=False --profile=False --show=False
evaluate --recipe=nano --set=[] --local=False --show=False
exec line
merge model --onto=None --out=None
migrate work --adapters=None --dry-run=False --json=False
models name --json=False
pretrain --recipe=nano:teacher --set=[] --local=False --profile=False --show=False
prune work --delete=False --json=False
pull model --to=None
runs --most=20 --json=False
sample caption --model=models:/nano-rayflow@champion --steps=None --guidance=None --force=False --count=4 \
--seed=0 --base=None --out=grid.png
search --recipe=nano_sweep --set=[] --show=False
shards emoji --sets=['noto'] --size=64 --with-style=None --out=None --per-shard=256 --seed=0
shards folder folder --size=None --allow-empty-caption=False --max-bad-fraction=0.05 --out=None --per-shard=256 --seed=0
study --recipe=rayflow_study --set=[] --local=False --show=False
submit --address=None --runtime-env=cluster/runtime_env.yaml --no-wait=False line
targets --recipe=nano --set=[] --local=False --show=False
ui --port=5000
"""


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of a line of `raystill`."""
    monkeypatch.setattr(sys, "argv", ["raystill", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_the_options_of_every_command_are_those_that_people_have_written_down() -> None:
    assert "\n".join(lines_of(parser(), "")) == COMMANDS.strip()


@pytest.mark.parametrize(("word", "said"), [("distil", "did you mean distill?"), ("xyz", "no command 'xyz'.")])
def test_an_unknown_command_gives_the_nearest(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, word) == 2
    assert said in capsys.readouterr().err


def lines_of(command: argparse.ArgumentParser, name: str) -> list[str]:
    """A line for each command below one, or for itself where it has none."""
    options = [action for action in command._actions if action.dest != "help"]
    for below in (dict(a.choices) for a in options if isinstance(a, argparse._SubParsersAction)):
        return [line for word, one in sorted(below.items()) for line in lines_of(one, f"{name} {word}".strip())]
    shown = [f"{a.option_strings[0]}={a.default}" if a.option_strings else a.dest for a in options]
    return [" ".join([name, *shown])]


def test_every_job_has_a_script_and_every_script_a_job() -> None:
    assert {path.stem for path in SCRIPTS} == set(JOBS)
    assert set(STYLES) == set(SETS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_job_shows_its_settings(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--show"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    *settings, last = capsys.readouterr().out.splitlines()
    assert last.startswith("# fingerprint ")
    assert sum("=" in line for line in settings) > 20  # texts of a study have several lines


def test_a_command_shows_what_its_script_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, "distill", "--set", "training.steps=7", "--show") == 0
    shown = capsys.readouterr().out
    assert "training.steps=7\n" in shown
    monkeypatch.setattr(sys, "argv", ["jobs/distill.py", "--set", "training.steps=7", "--show"])
    assert jobs.main("distill") == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distill", "--recipe", "nano:teacher"], "gives a Pretraining, for pretrain; distill takes a Run, such as"),
        (["pretrain", "--recipe", "nano"], "'nano' gives a Run, for distill, targets, evaluate, bench, demo; pretrain"),
        (["targets", "--recipe", "nanoo"], "there is no recipe 'nanoo'; did you mean nano"),
        (["distill", "--set", "training.step=3"], "training.steps"),
        (["distil"], "there is no command 'distil'; did you mean distill?"),
    ],
)
def test_what_is_typed_wrongly_is_told_from_what_is_right(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(monkeypatch, *words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "Traceback" not in said


def test_help_imports_nothing_heavy_and_settings_no_more_than_they_need() -> None:
    """Neither do the options of a job, of which a shell may ask at every key."""
    program = (
        "import sys, runpy; sys.argv = ['raystill', *sys.argv[1:]]\n"
        "try: runpy.run_module('raystill.cli', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {HEAVY} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    heavy = {"torch", "ray", "diffusers", "mlflow", "transformers", "boto3", "numpy"}
    helps = (["--help"], ["distill", "--help"], ["shards", "folder", "--help"], ["sample", "--help"])
    settings = (["distill", "--show"], {"ray", "mlflow", "transformers", "peft", "deepspeed"})
    for words, without in [*((words, heavy) for words in helps), settings]:
        line = [sys.executable, "-c", program.replace("HEAVY", repr(without)[1:-1]), *words]
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("usage: ") or "# fingerprint" in done.stdout


def test_a_recipe_of_a_class_of_one_s_own_is_taken_for_what_it_extends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass, fields\nfrom raystill.recipes import nano\n"
        "from raystill.run.settings import Run\n\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\nclass Mine(Run):\n    pass\n\n"
        "def run():\n    made = nano.run()\n    return Mine(**{f.name: getattr(made, f.name) for f in fields(made)})\n"
    )
    assert typed(monkeypatch, "distill", "--recipe", f"{tmp_path}/mine.py", "--show") == 0
    assert "# fingerprint " in capsys.readouterr().out
    assert typed(monkeypatch, "search", "--recipe", f"{tmp_path}/mine.py", "--show") == 2
    assert "gives a Mine; search takes a Search" in capsys.readouterr().err
