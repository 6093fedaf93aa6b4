"""Registration of adapters in MLflow's model registry: logged whole, never as a pickle, and compared with the champion.

The model is a `python_function` made from code (`served.py` travels with it, and raystill's scheduler where the adapter
needs that: `companions`). MLflow's own diffusers flavour carries the files, but its loader and its server drop the
scheduler, default to 30 steps and guidance 7.5 and pin whatever revision of the base is newest: wrong pictures and no
error. The adapter's own directory, with the README for plain diffusers, lies inside.
"""

import math
import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from raystill.models import artifact
from raystill.models.card import CARD_NAME, RAYSTILL_SCHEDULERS, AdapterCard
from raystill.tracking.companions import pack
from raystill.tracking.delivery import AWAY
from raystill.tracking.runs import unreachable

ADAPTER_FOLDER = "adapter"  # inside the model's artifacts
ADAPTER_PATH = f"artifacts/{ADAPTER_FOLDER}"  # inside the model
DIGEST_TAG = "raystill.artifact_digest"  # SHA-256 of adapter.json, which lists the digests of all other files
CANDIDATE, CHAMPION = "candidate", "champion"
COMPARED_STEPS = 4  # whose Frechet distance decides; a version not measured there is compared at its default
_REQUIREMENTS = ("mlflow", "diffusers", "peft", "torch", "transformers", "safetensors", "pillow")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """The outcome of comparing a version with the champion, the version that the alias `champion` names."""

    promoted: bool  # whether the version became the champion now
    champion: bool  # whether it is the champion, now or already
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """A registered version of a model, and the outcome of comparing it with the champion."""

    uri: str  # models:/NAME/VERSION
    version: int
    promotion: Promotion


def register(tracking_uri: str, name: str, directory: Path, run_id: str) -> Registration:
    """Log an adapter directory as a model of a run, register it and set the aliases; no version without all its files.

    The same directory registered again (a restarted job) gives the version that exists."""
    card = artifact.verify(directory)
    client = registry_client(tracking_uri)
    try:
        digest = artifact.sha256(directory / CARD_NAME)
        version = _existing(client, name, digest) or _create(client, name, directory, run_id, tags(card, digest))
        client.set_registered_model_alias(name, CANDIDATE, version)
        return Registration(
            uri=f"models:/{name}/{version}", version=int(version), promotion=promote(client, name, version)
        )
    except AWAY as error:
        raise unreachable(tracking_uri, error) from error


def registry_client(tracking_uri: str) -> MlflowClient:
    """An MLflow client of a tracking server, with the registry of MLFLOW_REGISTRY_URI, or else the server's own; never
    with one that other code of this process has chosen.
    """
    return MlflowClient(tracking_uri, os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri)


def promote(client: MlflowClient, name: str, version: str) -> Promotion:
    """Make a version the champion where it is the first measured one, or has a smaller Frechet distance by the same
    evaluation: at 4 steps, or at its default step count where it was not measured at 4.
    """
    rival = client.get_model_version(name, version)
    champion = _champion(client, name)
    if champion is not None and champion.version == rival.version:
        return Promotion(promoted=False, champion=True, reason=f"version {version} is the champion already")
    steps = _compared_steps(rival)
    reason = _refusal(rival, champion, steps)
    if reason is not None:
        return Promotion(promoted=False, champion=False, reason=reason)
    client.set_registered_model_alias(name, CHAMPION, version)
    if champion is None:
        return Promotion(promoted=True, champion=True, reason="there was no champion")
    reason = f"{_distance(rival, steps):g} is better than {_distance(champion, steps):g} of version {champion.version}"
    return Promotion(promoted=True, champion=True, reason=reason)


def tags(card: AdapterCard, digest: str) -> dict[str, str]:
    """Give the tags of a version, by which it is found and compared with others."""
    distances = {steps: card.frechet(steps) for steps in card.steps}
    known = {
        DIGEST_TAG: digest,
        "base": card.base.id,
        "base_revision": card.base.revision,
        "method": card.method,
        "default_steps": str(card.default_steps),
        "fingerprint": card.recipe_name,
        "evaluation_digest": card.evaluation_digest,
        **{f"frechet_{steps}": None if found is None else repr(found) for steps, found in distances.items()},
    }
    return {tag: value for tag, value in known.items() if value is not None}


def _compared_steps(version: ModelVersion) -> str:
    usual = str(COMPARED_STEPS)
    return usual if f"frechet_{usual}" in version.tags else version.tags.get("default_steps", usual)


def _refusal(rival: ModelVersion, champion: ModelVersion | None, steps: str) -> str | None:
    found = _distance(rival, steps)
    if not math.isfinite(found):
        return f"version {rival.version} has no Frechet distance at {steps} steps; evaluate before exporting"
    if champion is None:
        return None
    ours, theirs = rival.tags.get("evaluation_digest"), champion.tags.get("evaluation_digest")
    if ours != theirs or not math.isfinite(_distance(champion, steps)):
        return (
            f"version {rival.version} was measured by evaluation {ours}, the champion (version {champion.version}) by "
            f"{theirs}: the figures do not compare. Measure both alike, or set the alias by hand: "
            f"MlflowClient().set_registered_model_alias({rival.name!r}, {CHAMPION!r}, {rival.version})"
        )
    if found >= _distance(champion, steps):
        return f"{found:g} is no better than {_distance(champion, steps):g} of the champion, version {champion.version}"
    return None


def _distance(version: ModelVersion, steps: str) -> float:
    return float(version.tags.get(f"frechet_{steps}", "nan"))


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, str(number))


def _existing(client: MlflowClient, name: str, digest: str) -> str | None:
    found = client.search_model_versions(f"name = '{name}' and tags.`{DIGEST_TAG}` = '{digest}'", max_results=1)
    return str(found[0].version) if found else None


def _create(client: MlflowClient, name: str, directory: Path, run_id: str, version_tags: dict[str, str]) -> str:
    experiment_id = client.get_run(run_id).info.experiment_id
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    logged = client.create_logged_model(experiment_id, name=name, source_run_id=run_id, tags=version_tags)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            client.log_model_artifacts(logged.model_id, str(_packed(directory, Path(scratch), logged.model_id, run_id)))
    except AWAY:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    # The artifact location, not models:/ID: MLflow looks that up at the process-wide tracking address, maybe another.
    place = logged.artifact_location
    made = client.create_model_version(name, place, run_id=run_id, tags=version_tags, model_id=logged.model_id)
    return str(made.version)


def _packed(directory: Path, scratch: Path, model_id: str, run_id: str) -> Path:
    card = artifact.verify(directory)
    shutil.copytree(directory, scratch / ADAPTER_FOLDER)  # MLflow keeps the folder's name: it must be a known one
    settings, requirements, code = {"base": card.base.id, "device": ""}, [*_REQUIREMENTS], list[str]()
    if module := RAYSTILL_SCHEDULERS.get(artifact.scheduler_class(directory)):
        folder, settings["scheduler"] = pack(module, scratch)
        requirements, code = [*requirements, "jaxtyping"], [str(folder)]
    with warnings.catch_warnings():
        # MLflow's advice on signatures, of which the model has one; it turns filters off again by itself.
        warnings.showwarning = lambda *_args, **_more: None
        mlflow.pyfunc.save_model(
            path=str(scratch / "model"),
            # a path: the code is copied; an object would be pickled
            python_model=str(Path(__file__).with_name("served.py")),
            artifacts={ADAPTER_FOLDER: str(scratch / ADAPTER_FOLDER)},
            signature=_signature(card),
            pip_requirements=[f"{package}=={installed(package).partition('+')[0]}" for package in requirements],
            code_paths=code or None,
            model_config=settings,
            mlflow_model=Model(model_id=model_id, run_id=run_id),
        )
    return scratch / "model"


def _signature(card: AdapterCard) -> ModelSignature:
    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, name="prompt")]),
        outputs=Schema([ColSpec(DataType.binary)]),
        params=ParamSchema(
            [ParamSpec("steps", DataType.long, card.default_steps), ParamSpec("seed", DataType.long, 0)],
        ),
    )
