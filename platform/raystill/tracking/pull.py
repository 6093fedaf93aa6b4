"""Fetching a registered adapter by name and alias or version: verified, and from a local cache the second time."""

import re
import shutil
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from raystill.config.cache import cache_directory
from raystill.config.errors import UserError
from raystill.models import artifact
from raystill.models.card import CARD_NAME
from raystill.tracking.delivery import AWAY
from raystill.tracking.registry import ADAPTER_PATH, DIGEST_TAG, registry_client
from raystill.tracking.runs import unreachable

_URI = re.compile(r"models:/(?P<name>[^/@]+)(@(?P<alias>[\w\-]+)|/(?P<version>\d+))")


class PullError(UserError):
    """An adapter cannot be fetched; the message says what there is."""


def pull(model_uri: str, destination: Path | None = None, *, tracking_uri: str) -> Path:
    """Fetch `models:/NAME@ALIAS` or `models:/NAME/VERSION`; returns its verified directory, `destination` or cached."""
    parts = _URI.fullmatch(model_uri)
    if parts is None:
        raise PullError(f"found {model_uri!r}, expected models:/NAME@champion or models:/NAME/3")
    if destination is not None and destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise PullError(f"{destination} exists and is not an empty directory; name a new one")
    client = registry_client(tracking_uri)
    try:
        version = _resolve(client, parts["name"], parts["alias"], parts["version"])
        cached = _cached(version, tracking_uri)
    except AWAY as error:
        raise unreachable(tracking_uri, error) from error
    if destination is None:
        return cached
    shutil.copytree(cached, destination, dirs_exist_ok=True)
    return destination


def _resolve(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion:
    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [m.name for m in client.search_registered_models(max_results=20)]
        raise PullError(f"there is no model {name!r}; there are: {', '.join(names) or 'none yet'}") from error
    if alias is not None:
        if alias not in model.aliases:
            known = ", ".join(f"{a} (version {v})" for a, v in sorted(model.aliases.items()))
            raise PullError(f"model {name!r} has no alias {alias!r}; it has: {known or 'none'}")
        number = str(model.aliases[alias])
    versions = {str(v.version): v for v in client.search_model_versions(f"name = '{name}'")}
    if number not in versions:
        raise PullError(
            f"model {name!r} has no version {number}; it has: {', '.join(sorted(versions, key=int)) or 'none'}"
        )
    return versions[number]


def _cached(version: ModelVersion, tracking_uri: str) -> Path:
    digest = version.tags.get(DIGEST_TAG)
    if digest is None:
        raise PullError(
            f"version {version.version} of {version.name!r} was not registered by raystill: it has no tag {DIGEST_TAG}"
        )
    # The digest is in the name because two servers may number different adapters alike.
    place = cache_directory() / version.name / f"{version.version}-{digest[:16]}"
    if not _intact(place, digest):
        _download(version, tracking_uri, place, digest)
    return place


def _intact(place: Path, digest: str) -> bool:
    if not (place / CARD_NAME).is_file() or artifact.sha256(place / CARD_NAME) != digest:
        return False
    try:
        artifact.verify(place)
    except UserError:  # damaged in the cache: fetched again
        return False
    return True


def _download(version: ModelVersion, tracking_uri: str, place: Path, digest: str) -> None:
    assert version.source is not None  # `register` gives one
    root = version.source  # where `register` put the files; the registry forgets the logged model's id
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=".fetching-") as scratch:
        fetched = Path(
            download_artifacts(
                artifact_uri=f"{root.rstrip('/')}/{ADAPTER_PATH}", dst_path=scratch, tracking_uri=tracking_uri
            )
        )
        artifact.verify(fetched)
        if artifact.sha256(fetched / CARD_NAME) != digest:
            raise PullError(
                f"the {CARD_NAME} of {version.name!r} version {version.version} is not the one that was registered"
            )
        if place.exists():
            shutil.rmtree(place)
        fetched.rename(place)
