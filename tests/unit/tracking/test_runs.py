"""A training run is one MLflow run, whatever happens to the job or the server."""

import json
import os
import socket
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from raystill.config.fingerprint import Knob, fingerprint
from raystill.tracking.delivery import without_password
from raystill.tracking.runs import (
    LONGEST_VALUE,
    TrackedRun,
    TrackingError,
    flatten,
    open_experiment,
)
from raystill.tracking.tracking import Pace, Tracking, tracking_uri

FAST = Pace(age_s=0.05, retry_s=0.05, closing_s=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    sigma: float = 0.1
    steps: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    method: Inner = Inner()
    seed: int = 3
    note: str = ""
    log_every: Knob[int] = 10


def settings(uri: str, experiment: str, name: str = "run") -> Tracking:
    return Tracking(uri=uri, experiment=experiment, name=name, pace=FAST)


def steps(client: MlflowClient, run_id: str, name: str) -> list[int]:
    return [m.step for m in client.get_metric_history(run_id, name)]


def test_a_run_carries_its_recipe(uri: str, client: MlflowClient, experiment: str) -> None:
    with TrackedRun(settings(uri, experiment), Recipe()) as run:
        pass
    found = client.get_run(run.run_id)
    assert found.data.params == {
        "fingerprint": fingerprint(Recipe()),
        "kind": "Recipe", "method.kind": "Inner", "method.sigma": "0.1", "method.steps": "[1, 2, 4]",
        "seed": "3", "note": "", "log_every": "10",
    }  # fmt: skip
    assert found.data.tags["raystill.fingerprint"] == fingerprint(Recipe())
    assert found.data.tags["raystill.commit"]
    assert [a.path for a in client.list_artifacts(run.run_id)] == ["recipe.json"]
    assert found.info.status == "FINISHED"


def test_metrics_and_pictures_arrive(uri: str, client: MlflowClient, experiment: str) -> None:
    with TrackedRun(settings(uri, experiment), Recipe()) as run:
        for step in range(1500):  # more than one call holds
            run.metrics(step, {"loss/student": 1 / (step + 1), "time/step_s": 0.5})
        run.picture("samples/4_steps", Image.new("RGB", (6, 4), "red"), step=7)
    assert steps(client, run.run_id, "loss/student") == list(range(1500))
    assert client.get_run(run.run_id).data.metrics["loss/student"] == pytest.approx(1 / 1500)
    names = [a.path for a in client.list_artifacts(run.run_id, "images")]
    assert any("samples~4_steps" in name and "+step+7+" in name and name.endswith(".png") for name in names)


def test_metrics_arrive_while_the_run_goes_on(uri: str, client: MlflowClient, experiment: str) -> None:
    with TrackedRun(settings(uri, experiment), Recipe()) as run:
        run.metrics(1, {"loss/student": 2.0})
        deadline = time.monotonic() + 10
        while not client.get_run(run.run_id).data.metrics and time.monotonic() < deadline:
            time.sleep(0.05)
        assert client.get_run(run.run_id).data.metrics == {"loss/student": 2.0}


def lose_a_node(run: TrackedRun) -> None:
    with run:
        for step in range(6):
            run.metrics(step, {"loss/student": float(step)})
        raise RuntimeError("node lost")


def test_a_restarted_job_continues_its_run(uri: str, client: MlflowClient, experiment: str) -> None:
    first = TrackedRun(settings(uri, experiment), Recipe())
    with pytest.raises(RuntimeError, match="node lost"):
        lose_a_node(first)
    assert client.get_run(first.run_id).info.status == "FAILED"
    with TrackedRun(settings(uri, experiment), Recipe()) as second:
        assert second.resumed
        assert client.get_run(second.run_id).info.status == "RUNNING"
        for step in range(4, 9):  # the checkpoint was of step 3
            second.metrics(step, {"loss/student": float(step)})
    assert second.run_id == first.run_id
    assert steps(client, second.run_id, "loss/student") == list(range(9))
    assert client.get_run(second.run_id).info.status == "FINISHED"


def test_a_run_goes_on_after_its_knobs_were_changed(
    uri: str, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    with TrackedRun(settings(uri, experiment), Recipe(log_every=10)) as first:
        first.metrics(10, {"loss/student": 1.0})
    with TrackedRun(settings(uri, experiment), Recipe(log_every=5)) as second:
        second.metrics(15, {"loss/student": 0.5})
    assert (second.resumed, second.run_id) == (True, first.run_id)
    assert steps(client, first.run_id, "loss/student") == [10, 15]
    assert client.get_run(first.run_id).data.params["log_every"] == "10"  # MLflow keeps the first value
    recipe = json.loads(Path(client.download_artifacts(first.run_id, "recipe.json", str(tmp_path))).read_text())
    assert recipe["log_every"] == 5


def test_a_setting_that_was_raised_may_belong_to_the_same_run(uri: str, experiment: str) -> None:
    runs = []
    for tracking in (settings(uri, experiment), replace(settings(uri, experiment), without=("seed",))):
        for seed in (3, 4):
            with TrackedRun(tracking, Recipe(seed=seed)) as run:
                runs.append(run.run_id)
    assert len(set(runs[:2])) == 2
    assert len(set(runs[2:])) == 1


def test_other_inputs_at_the_same_place_are_another_run(uri: str, experiment: str) -> None:
    runs = []
    for inputs in ("0123", "4567", "0123"):
        with TrackedRun(replace(settings(uri, experiment), inputs=inputs), Recipe()) as run:
            runs.append(run.run_id)
    assert runs[0] == runs[2] != runs[1]


def test_what_could_not_be_delivered_is_sent_by_the_next_run_and_kept_until_it_has_arrived(
    uri: str, client: MlflowClient, experiment: str, tmp_path: Path
) -> None:
    tracking = replace(settings(uri, experiment), directory=tmp_path)
    with TrackedRun(tracking, Recipe()) as first:
        for step in range(3):
            first.metrics(step, {"loss/student": 1.0})
    file = tmp_path / "spool" / f"{first.run_id}.jsonl"
    file.parent.mkdir()
    now = time.time_ns() // 1_000_000
    file.write_text("".join(f'[{step}, {now}, {{"loss/student": 2.0}}]\n' for step in range(2, 6)))  # 2 has arrived
    with TrackedRun(tracking, Recipe()) as second:
        assert file.exists()  # a kill in here loses nothing
        second.metrics(5, {"loss/student": 3.0})
        second.metrics(6, {"loss/student": 3.0})
    assert not file.exists()
    assert steps(client, first.run_id, "loss/student") == list(range(7))
    assert client.get_run(first.run_id).data.metrics["loss/student"] == 3.0


def test_another_name_or_recipe_is_another_run(uri: str, experiment: str) -> None:
    runs = []
    for name, recipe in [("a", Recipe()), ("b", Recipe()), ("a", Recipe(seed=4))]:
        with TrackedRun(settings(uri, experiment, name), recipe) as run:
            runs.append(run.run_id)
    assert len(set(runs)) == 3


def test_an_interrupted_run_is_killed(uri: str, client: MlflowClient, experiment: str) -> None:
    run = TrackedRun(settings(uri, experiment), Recipe())
    with pytest.raises(KeyboardInterrupt), run:
        raise KeyboardInterrupt
    assert client.get_run(run.run_id).info.status == "KILLED"


def test_long_values_are_cut_and_odd_keys_made_fit() -> None:
    flat = flatten({"note": "x" * 7000, "table": {"a/b=c": 1, "": {}}})
    assert len(flat["note"]) <= LONGEST_VALUE
    assert flat["note"].endswith("(7000 characters; the whole is in recipe.json)")
    assert flat["table.a_b_c"] == "1"


def test_long_values_are_taken_by_mlflow(uri: str, experiment: str) -> None:
    with TrackedRun(settings(uri, experiment), Recipe(note="é" * 9000)) as run:
        assert run.run_id


def test_nothing_of_the_environment_is_logged(
    uri: str, client: MlflowClient, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "quite-secret")
    with TrackedRun(settings(uri, experiment), Recipe()) as run:
        pass
    assert "quite-secret" not in str(client.get_run(run.run_id).to_dictionary())
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_names_are_checked_where_they_are_given(uri: str, experiment: str) -> None:
    with TrackedRun(settings(uri, experiment), Recipe()) as run, pytest.raises(ValueError, match="area/quantity_unit"):
        run.metrics(1, {"loss=1": 2.0})


def test_an_experiment_that_stores_elsewhere_is_refused(uri: str, experiment: str, tmp_path: Path) -> None:
    open_experiment(uri, experiment, (tmp_path / "a").as_uri())
    with pytest.raises(TrackingError, match="keeps its files at"):
        open_experiment(uri, experiment, (tmp_path / "b").as_uri())


def test_an_address_that_does_not_answer_is_named_without_its_password() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TrackingError, match=rf"MLflow at http://\*\*\*@127.0.0.1:{port} did not") as caught:
        open_experiment(f"http://me:hidden@127.0.0.1:{port}", "x")
    assert "hidden" not in str(caught.value)


def test_the_default_address_is_a_file_in_the_work_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(tmp_path) == "http://mlflow:5000"


def test_passwords_are_taken_out() -> None:
    assert without_password("postgresql://me:pw@db/x") == "postgresql://***@db/x"
