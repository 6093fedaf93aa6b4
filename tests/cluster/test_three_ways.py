"""The three ways of use on a cluster that runs already, two node processes on this machine with token authentication:
a submitted job that is stopped and goes on, a sweep that is killed and goes on, and what comes out of the registry.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from tests.cluster.nodes import RAY, Node, Nodes, started
from tests.workplace import ROOT, SMALL, Typed, cli, script

from raystill.launch.submit import ADDRESSES

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 72


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with started([Node(cpus=2), Node(cpus=2)], tmp_path_factory.mktemp("home")) as found:
        yield found


def line(workplace: Path, few: Path, **changes: str) -> list[str]:
    """What is submitted."""
    settings = {
        **SMALL, "teacher": str(workplace / "teachers" / "tiny"), "sample": str(few), "cluster.actors": "1",
        "training.steps": str(STEPS), "training.log_every": "2", "training.checkpoint_every": "1000",
        "training.picture_every": "0", **changes,
    }  # fmt: skip
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    return ["python", "jobs/distill.py", "--recipe", "nano", *flags]


def submit(nodes: Nodes, words: list[str], *options: str) -> str:
    done = nodes.run(
        RAY, "job", "submit", "--address", nodes.dashboard, "--runtime-env", "cluster/runtime_env.yaml", *options, "--",
        *words, cwd=ROOT,
    )  # fmt: skip
    return done.stdout + done.stderr


def test_a_job_is_stopped_with_a_checkpoint_and_goes_on_when_it_is_submitted_again(
    nodes: Nodes, workplace: Path, few: Path
) -> None:
    words = line(workplace, few)
    number = re.search(r"raysubmit_\w+", submit(nodes, words, "--no-wait"))
    assert number is not None
    moving = re.compile(rf"student.*?\b([1-9]\d*)(\.0)?/{STEPS}")
    wait(lambda: moving.search(logs(nodes, number[0])), nodes, number[0])
    nodes.ask(f"/api/jobs/{number[0]}/stop", "POST")  # as `ray job stop` does, which would come too late
    wait(lambda: status(nodes, number[0]) == "STOPPED", nodes, number[0])
    stopped = logs(nodes, number[0])
    assert "saving a checkpoint first" in stopped
    again = submit(nodes, words)
    assert "succeeded" in again
    assert "targets:" not in again.replace(stopped, "")
    assert "models:/nano-rayflow/1" in again
    home, ray = (
        Path(nodes.environment["RAYSTILL_HOME"]),
        Path(nodes.environment["RAY_AUTH_TOKEN_PATH"]).with_name("ray"),
    )
    kept = [home / "mlflow.db", *(path for path in ray.glob("session_*/logs/**/*") if path.is_file())]
    shown = json.dumps(nodes.ask("/api/jobs/")) + again + "".join(path.read_text(errors="replace") for path in kept)
    assert not [secret for secret in keys(nodes) if secret in shown]


def logs(nodes: Nodes, number: str) -> str:
    return str(nodes.ask(f"/api/jobs/{number}/logs")["logs"])


def keys(nodes: Nodes) -> set[str]:
    text = (Path(nodes.environment["RAYSTILL_HOME"]) / "s3" / "s3cfg.json").read_text()
    found: dict[str, str] = json.loads(text)["identities"][0]["credentials"][0]
    return set(found.values())


def test_raystill_submit_follows_a_job_to_its_end(nodes: Nodes, workplace: Path, few: Path) -> None:
    show = ["python", "jobs/distill.py", "--recipe", "nano", "--show"]
    done = nodes.run(*cli("submit", "--address", nodes.dashboard, "--", *show), cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "method.path.sigma=0.0" in done.stdout
    assert "SUCCEEDED" in done.stdout
    wrong = ["python", "-c", "print('no such thing'); raise SystemExit(2)"]
    failed = nodes.run(*cli("submit", "--address", nodes.dashboard, "--", *wrong), cwd=ROOT)
    assert failed.returncode == 2
    assert "no such thing" in failed.stdout
    assert "failed" in failed.stderr


def test_an_address_where_nobody_answers_is_named(
    workplace: Path, few: Path, typed: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ADDRESSES:
        monkeypatch.setenv(name, "127.0.0.1:1")  # which the command line changes, too
    done = typed(cli("submit", "--address", "http://127.0.0.1:1", "--", "python", "jobs/distill.py"), ROOT)
    assert done.returncode == 2
    assert "no Ray cluster takes jobs at http://127.0.0.1:1" in done.stderr
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    found = typed([*script("distill"), *line(workplace, few)[2:]], workplace)
    assert found.returncode == 2
    assert "RAY_ADDRESS is 127.0.0.1:1, where no Ray cluster answered" in found.stderr


def test_places_that_new_machines_would_not_reach_are_refused(nodes: Nodes, workplace: Path, few: Path) -> None:
    joined = Nodes(nodes.address, nodes.dashboard, {**nodes.environment, "RAY_ADDRESS": nodes.address})
    done = joined.run(*line(workplace, few, **{"cluster.grows": "true"}), cwd=ROOT)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "the cluster can grow, and only this machine reaches" in done.stderr
    assert "store=embedded: --set store=environment" in done.stderr


def test_a_line_with_a_secret_is_not_sent(typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "quite-secret-indeed")
    sent = typed(cli("submit", "--", "python", "-c", "print('quite-secret-indeed')"), ROOT)
    assert sent.returncode == 2
    assert "holds a secret (HF_TOKEN)" in sent.stderr
    assert "quite-secret" not in sent.stderr
    named = typed(cli("submit", "--", "env", "AWS_SECRET_ACCESS_KEY=quite", "python", "jobs/distill.py"), ROOT)
    assert named.returncode == 2
    assert "holds a secret (AWS_SECRET_ACCESS_KEY)" in named.stderr


SWEEP = """
from dataclasses import replace
from raystill.search.space import Choice, Range
from raystill.recipes import nano_sweep

def run():
    space = (
        Range(path="method.path.sigma", low=0.0, high=0.2),
        Choice(path="method.times", values=("GridTimes", "UniformTimes")),
        Range(path="method.times.delta", low=0.1, high=0.5, when={"method.times": ("GridTimes",)}),
        Choice(path="optimizer.learning_rate", values=(1e-3, 2e-3, 1e30)),
    )
    return replace(nano_sweep.run(), space=space, trials=4, random=4, rungs=(2, 4))
"""


def sweep_line(workplace: Path, few: Path, output: Path) -> list[str]:
    recipe = workplace / "small_sweep.py"
    recipe.write_text(SWEEP)
    settings = {
        **{f"base.{name}": value for name, value in SMALL.items()}, "base.training.steps": "8",
        "base.teacher": str(workplace / "teachers" / "tiny"), "base.sample": str(few), "base.cluster.actors": "1",
        "output": str(output),
    }  # fmt: skip
    flags = [flag for name, value in settings.items() for flag in ("--set", f"{name}={value}")]
    return ["python", "jobs/search.py", "--recipe", str(recipe), *flags]


def test_a_killed_sweep_goes_on_and_pays_for_its_targets_once(
    nodes: Nodes, workplace: Path, few: Path, tmp_path: Path
) -> None:
    words = sweep_line(workplace, few, tmp_path)
    number = re.search(r"raysubmit_\w+", submit(nodes, words, "--no-wait"))
    assert number is not None
    home = Path(nodes.environment["RAYSTILL_HOME"])
    wait(lambda: finished(home) and tracked(home), nodes, number[0])
    before = {path: path.read_text() for path in results(home)}
    driver = next(
        p for p in psutil.process_iter(["cmdline"]) if str(workplace / "small_sweep.py") in (p.info["cmdline"] or ())
    )
    driver.kill()
    wait(lambda: status(nodes, number[0]) == "FAILED", nodes, number[0])
    again = submit(nodes, words)
    assert "succeeded" in again, again[-3000:]
    assert "going on with the sweep" in again
    text = (tmp_path / "nano-sweep.md").read_text()
    assert "4 trials" in text
    assert "1 set of 32 samples" in text  # one of three shards is held out
    assert "64 teacher calls for all 4 trials (0 samples were computed by a trial itself)" in text
    assert re.search(r"\| failed +\|", text)
    assert (tmp_path / "nano-sweep-sigma.png").is_file()
    assert (tmp_path / "nano-sweep-trials.png").is_file()
    for path, reported in before.items():
        assert path.read_text() == reported, "a finished trial was run again"
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raystill")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "cost/teacher_calls" in run.data.metrics]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) == 4
    assert {run.info.status for run in children} <= {"FINISHED", "FAILED"}
    assert parent.data.metrics["cost/teacher_calls"] == 64


def finished(home: Path) -> bool:
    """Whether Ray Tune has noted, of every trial that has reported its last step, that it is finished."""
    noted = "".join(path.read_text() for path in home.glob("sweeps/*/experiment_state-*.json"))
    return 0 < len(results(home)) <= len(re.findall(r"status\W+TERMINATED", noted))


def tracked(home: Path) -> bool:
    """Whether MLflow has ended every trial that has reported its last step; a kill before leaves it RUNNING."""
    client = MlflowClient(f"sqlite:///{home / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("raystill")
    ended = client.search_runs([experiment.experiment_id], "attributes.status = 'FINISHED'") if experiment else []
    children = [run for run in ended if "mlflow.parentRunId" in run.data.tags]
    return len(children) >= len(results(home))


def results(home: Path) -> list[Path]:
    """What Ray Tune keeps of trials that have reported their last step."""
    found = home.glob("sweeps/*/*/result.json")
    return [path for path in found if any(json.loads(line)["step"] == 8 for line in path.read_text().splitlines())]


def test_what_the_registry_holds_is_listed_pulled_and_drawn(
    nodes: Nodes, workplace: Path, tmp_path: Path, typed: Typed
) -> None:
    listed = nodes.run(*cli("models"), cwd=workplace)
    assert re.search(
        r"models:/nano-rayflow/1 +candidate, champion +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+ +rayflow", listed.stdout
    )
    assert "models:/nano-open-rayflow/1" in listed.stdout
    pulled = nodes.run(
        *cli("pull", "models:/nano-open-rayflow@champion", "--to", str(tmp_path / "adapter")), cwd=workplace
    )
    assert pulled.returncode == 0, pulled.stderr
    commit = json.loads((tmp_path / "adapter" / "adapter.json").read_text())["commit"]
    assert commit.startswith("_ray_pkg_")  # Ray sent the checkout without its .git
    sample = cli("sample", "red heart", "--model", str(tmp_path / "adapter"), "--out", "a.png", "--steps")
    for words in (["2"], ["3", "--force"]):
        drawn = typed([*sample, *words], tmp_path)
        assert drawn.returncode == 0, drawn.stderr
    refused = typed([*sample, "3"], tmp_path)
    assert refused.returncode == 2
    assert "trained for 1, 2, 4, 8 steps, found 3" in refused.stderr


def wait(done: Callable[[], object], nodes: Nodes, number: str) -> None:
    """Wait until something holds, at most as long as a job runs."""
    end, running = time.monotonic() + 400, True
    while not done():
        assert running, logs(nodes, number)[-3000:]
        running = time.monotonic() < end and status(nodes, number) in ("RUNNING", "PENDING")
        time.sleep(0.5)


def status(nodes: Nodes, number: str) -> str:
    return str(nodes.ask(f"/api/jobs/{number}")["status"])
