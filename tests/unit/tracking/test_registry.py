"""Adapters are registered whole, fetched whole, and draw as they were trained to."""

import ast
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from mlflow import MlflowClient
from PIL import Image
from tests.unit.tracking.adapters import TIMES, Export

from raystill.config.digest import digest
from raystill.models import artifact
from raystill.models.artifact import ArtifactError
from raystill.models.card import RAYSTILL_SCHEDULERS
from raystill.models.sampling import ODE, Sampling
from raystill.models.scheduler import RayFlowScheduler
from raystill.run.migrate import held_adapters
from raystill.tracking.companions import needed
from raystill.tracking.listing import held, listing, runs
from raystill.tracking.pull import PullError, pull
from raystill.tracking.registry import DIGEST_TAG, register
from raystill.tracking.runs import TrackedRun
from raystill.tracking.tracking import Tracking

MODULE = RAYSTILL_SCHEDULERS["RayFlowScheduler"]
pytestmark = pytest.mark.usefixtures("cache")


def test_what_is_registered_can_be_pulled(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str, cache: Path, tmp_path: Path
) -> None:
    directory = export(17.0)
    made = register(uri, experiment, directory, run_id)
    assert made.uri == f"models:/{experiment}/1"
    assert made.promotion.promoted
    version = client.get_model_version_by_alias(experiment, "champion")
    assert version.run_id == run_id
    assert version.tags == {
        DIGEST_TAG: artifact.sha256(directory / "adapter.json"),
        "base": artifact.verify(directory).base.id, "method": "rayflow", "default_steps": "4",
        "fingerprint": digest({"kind": "Run", "seed": 0}), "evaluation_digest": "e1", "frechet_4": "17.0",
    }  # fmt: skip
    pulled = pull(f"models:/{experiment}@champion", tracking_uri=uri)
    assert pulled.is_relative_to(cache)
    assert artifact.verify(pulled) == artifact.verify(directory)
    elsewhere = pull(f"models:/{experiment}/1", tmp_path / "mine", tracking_uri=uri)
    assert elsewhere == tmp_path / "mine"
    assert artifact.verify(elsewhere) == artifact.verify(directory)


def test_the_second_pull_comes_from_the_cache(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = register(uri, experiment, export(), run_id)
    first = pull(made.uri, tracking_uri=uri)
    stamp = first.stat().st_ino
    assert pull(made.uri, tracking_uri=uri).stat().st_ino == stamp
    (first / "README.md").write_text("damaged")
    again = pull(made.uri, tracking_uri=uri)
    assert again.stat().st_ino != stamp
    assert "damaged" not in (again / "README.md").read_text()


def test_registering_twice_gives_one_version(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    directory = export()
    assert register(uri, experiment, directory, run_id).version == 1
    again = register(uri, experiment, directory, run_id)
    assert again.version == 1
    assert again.promotion.reason == "version 1 is the champion already"


def test_only_a_comparable_and_better_version_becomes_champion(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    def champion() -> str:
        return str(client.get_model_version_by_alias(experiment, "champion").version)

    unmeasured = register(uri, experiment, export(None, seed=9), run_id)
    assert not unmeasured.promotion.promoted
    assert "evaluate before" in unmeasured.promotion.reason
    assert register(uri, experiment, export(20.0, seed=1), run_id).promotion.promoted
    assert champion() == "2"
    worse = register(uri, experiment, export(21.0, seed=2), run_id)
    assert worse.promotion.reason == "21 is no better than 20 of the champion, version 2"
    other = register(uri, experiment, export(1.0, "e2", seed=3), run_id)
    assert not other.promotion.promoted
    assert "measured by evaluation e2, the champion (version 2) by e1" in other.promotion.reason
    assert champion() == "2"
    better = register(uri, experiment, export(12.5, seed=4), run_id)
    assert better.promotion.reason == "12.5 is better than 20 of version 2"
    assert champion() == "5"
    assert str(client.get_model_version_by_alias(experiment, "candidate").version) == "5"


def test_a_student_that_is_not_drawn_in_4_steps_is_compared_at_its_own(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    assert register(uri, experiment, export(20.0, seed=1, steps=2), run_id).promotion.promoted
    better = register(uri, experiment, export(12.5, seed=2, steps=2), run_id)
    assert better.promotion.reason == "12.5 is better than 20 of version 1"
    other = register(uri, experiment, export(1.0, seed=3, steps=4), run_id)
    assert not other.promotion.promoted
    assert "the figures do not compare" in other.promotion.reason


def test_a_damaged_adapter_is_not_registered(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    directory = export()
    (directory / "picture.png").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"picture\.png has SHA-256"):
        register(uri, experiment, directory, run_id)
    assert client.search_registered_models(f"name = '{experiment}'") == []


def test_the_served_model_draws_with_the_adapters_own_settings(
    uri: str, run_id: str, export: Export, experiment: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = export()
    made = register(uri, experiment, directory, run_id)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pyfunc.load_model(made.uri)
    first, second = model.predict({"prompt": ["a cat", "a dog"]})
    pipeline = by_hand(directory, base)
    generators = [torch.Generator().manual_seed(i) for i in (0, 1)]
    expected = pipeline(["a cat", "a dog"], num_inference_steps=4, guidance_scale=1.0, generator=generators).images
    for found, picture in zip((first, second), expected, strict=True):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(picture))
    (two,) = model.predict({"prompt": ["a dog"]}, params={"steps": 2, "seed": 1})
    assert two != second
    with pytest.raises(ValueError, match=r"draws in \[1, 2, 4\] steps, 3 were asked for"):
        model.predict({"prompt": ["a cat"]}, params={"steps": 3})


def test_what_is_registered_is_listed_with_what_becomes_of_it(
    uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    directory = export(17.0)
    place = register(uri, experiment, directory, run_id).uri
    rows = {at: (what, becomes) for at, what, becomes in held(uri)}
    assert rows[place] == ("adapter of rayflow by this version", "pulled as it is")
    client.delete_model_version_tag(experiment, "1", "fingerprint")  # as earlier versions registered it
    rows = {at: (what, becomes) for at, what, becomes in held(uri)}
    assert rows[place][0] == "adapter of rayflow by an earlier version"
    assert "no later one replaces this champion by itself" in rows[place][1]
    (row,) = (row for row in held_adapters(directory.parent) if row.place == str(directory))
    assert (row.holds, row.becomes.partition(";")[0]) == ("adapter of rayflow by an earlier version", "read as it is")


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_the_served_model_brings_raystill_s_scheduler_where_the_adapter_needs_it(
    eta: float, uri: str, run_id: str, export: Export, experiment: str, base: Path
) -> None:
    directory = export(sampling=Sampling(jump="anchored", eta=eta))
    made = register(uri, experiment, directory, run_id)
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    model = mlflow.pyfunc.load_model(made.uri)
    (found,) = model.predict({"prompt": ["a cat"]}, params={"steps": 2, "seed": 5})
    pipeline = by_hand(directory, base, RayFlowScheduler)
    generator = torch.Generator().manual_seed(5)
    (expected,) = pipeline("a cat", num_inference_steps=2, guidance_scale=1.0, generator=generator).images
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found))), np.asarray(expected))
    served = type(model.unwrap_python_model()._pipeline.scheduler).__module__  # not the one that is installed here
    assert served.startswith("raystill_")
    assert served.endswith(".models.scheduler")


def test_raystill_s_scheduler_needs_nothing_of_raystill_but_its_mathematics() -> None:
    assert set(needed(MODULE)) == {
        "raystill.config.errors", "raystill.config.fingerprint", "raystill.flow.jumps", "raystill.flow.paths",
        "raystill.flow.predictions",
        "raystill.flow.schedules", "raystill.flow.starts", "raystill.models.scheduler", "raystill.models.stepping",
        "raystill.models.stock",
    }  # fmt: skip
    third = {name.split(".")[0] for text in needed(MODULE).values() for name in imported(text)}
    assert third - set(sys.stdlib_module_names) == {"raystill", "torch", "diffusers", "jaxtyping"}


def imported(text: str) -> list[str]:
    nodes = list(ast.walk(ast.parse(text)))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return plain + [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]


@pytest.mark.parametrize("sampling", [ODE, Sampling(jump="anchored")], ids=["stock", "raystill"])
def test_nothing_that_is_registered_is_a_pickle(
    sampling: Sampling, uri: str, client: MlflowClient, run_id: str, export: Export, experiment: str
) -> None:
    made = register(uri, experiment, export(sampling=sampling), run_id)
    source = client.get_model_version(experiment, str(made.version)).source
    assert source is not None
    root = Path(source.removeprefix("file://"))
    suffixes = {p.suffix for p in root.rglob("*") if p.is_file() and p.name != "MLmodel"}
    assert suffixes == {".json", ".md", ".png", ".py", ".safetensors", ".txt", ".yaml"}


def by_hand(directory: Path, base: Path, kind: Any = DDIMScheduler) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    pipeline.scheduler = kind.from_pretrained(directory, subfolder="scheduler")
    pipeline.load_lora_weights(directory)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("sampling", [ODE, Sampling(jump="anchored")], ids=["stock", "raystill"])
def test_the_lines_of_the_readme_run(sampling: Sampling, export: Export, base: Path) -> None:
    directory = export(sampling=sampling)
    code = (directory / "README.md").read_text().split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)  # noqa: S102  # what a reader of the model card does
    assert names["picture"].size == (16, 16)
    assert names["pipeline"].scheduler.timesteps.tolist() == list(TIMES["4"])


def test_runs_are_listed_from_the_newest_on(uri: str, experiment: str) -> None:
    tracking = Tracking(uri=uri, experiment=experiment, name="first")
    with TrackedRun(tracking, {"training": {"steps": 7}}) as run:
        run.metrics(7, {"evaluation/frechet_4": 12.5})
    with pytest.raises(KeyboardInterrupt), TrackedRun(replace(tracking, name="second"), {}):
        raise KeyboardInterrupt
    mine = [row for row in json.loads(runs(uri, most=2, as_json=True)) if row["run"] in ("first", "second")]
    assert [(row["run"], row["status"], row["steps"], row["frechet_4"]) for row in mine] == [
        ("second", "killed", "-", "-"),
        ("first", "finished", "7", "12.5"),
    ]
    head, second, *_ = runs(uri, most=2).splitlines()
    assert head.split() == ["began", "run", "status", "steps", "frechet_4", "id"]
    assert second.split()[2:4] == ["second", "killed"]


def test_unknown_things_are_answered_with_what_there_is(uri: str, run_id: str, export: Export, experiment: str) -> None:
    register(uri, experiment, export(), run_id)
    with pytest.raises(PullError, match=rf"no model 'nothing'; there are: .*{experiment}"):
        pull("models:/nothing@champion", tracking_uri=uri)
    with pytest.raises(PullError, match=rf"no model 'nothing'; there are: .*{experiment}"):
        listing(uri, "nothing")
    with pytest.raises(PullError, match=r"no alias 'best'; it has: candidate \(version 1\), champion \(version 1\)"):
        pull(f"models:/{experiment}@best", tracking_uri=uri)
    with pytest.raises(PullError, match="no version 7; it has: 1"):
        pull(f"models:/{experiment}/7", tracking_uri=uri)
    with pytest.raises(PullError, match="expected models:/NAME@champion or models:/NAME/3"):
        pull("the best one", tracking_uri=uri)


def test_a_full_destination_is_left_alone(uri: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(PullError, match="not an empty directory"):
        pull("models:/a@champion", tmp_path / "mine", tracking_uri=uri)
