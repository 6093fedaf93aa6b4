"""Listings of runs, and of the models in the registry, as text."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.entities.model_registry import ModelVersion, RegisteredModel
from mlflow.exceptions import MlflowException

from raystill.tracking.delivery import AWAY
from raystill.tracking.pull import PullError
from raystill.tracking.registry import CHAMPION, DIGEST_TAG, registry_client
from raystill.tracking.runs import unreachable

COLUMNS = ("model", "aliases", "method", "base", "evaluation")
FIGURE = "frechet_"  # prefix of the tags that hold a Frechet distance; the step count follows


def listing(tracking_uri: str, name: str | None = None, *, as_json: bool = False) -> str:
    """A text table, or JSON, of every model's newest version and those with an alias, or of all versions of one model;
    PullError where no model has that name.
    """
    client = registry_client(tracking_uri)
    try:
        models = _models(client, name)
        rows = [
            _row(model, version) for model in models for version in _versions(client, model, every=name is not None)
        ]
    except AWAY as error:
        raise unreachable(tracking_uri, error) from error
    if as_json:
        return json.dumps(rows, indent=1)
    if not rows:
        return "there is no model yet: distil one with raystill distill"
    figures = sorted({key for row in rows for key in row if key.startswith(FIGURE)}, key=lambda key: (len(key), key))
    return _table(rows, [*COLUMNS[:2], *figures, *COLUMNS[2:]])


def runs(tracking_uri: str, *, most: int = 20, as_json: bool = False) -> str:
    """A text table, or JSON, of the newest runs of every experiment, at most `most` of them: when each began, its name,
    how it ended, the steps that it was to take, and its distance at four steps where it was evaluated.
    """
    client = registry_client(tracking_uri)
    try:
        every = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(every, max_results=most, order_by=["attributes.start_time DESC"])
    except AWAY as error:
        raise unreachable(tracking_uri, error) from error
    rows = [_run(run) for run in found]
    if as_json:
        return json.dumps(rows, indent=1)
    return _table(rows, [*rows[0]]) if rows else "there is no run yet: distil something with raystill distill"


def _run(run: Run) -> dict[str, str]:
    began = datetime.fromtimestamp(run.info.start_time / 1000).strftime("%Y-%m-%d %H:%M")
    distance = run.data.metrics.get("evaluation/frechet_4")
    return {
        "began": began,
        "run": run.info.run_name or "-",
        "status": run.info.status.lower(),
        "steps": run.data.params.get("training.steps", "-"),
        "frechet_4": "-" if distance is None else f"{distance:.4g}",
        "id": run.info.run_id,
    }


def _table(rows: Sequence[Mapping[str, str]], head: Sequence[str]) -> str:
    """Rows as aligned text below a header."""
    cells = [head, *([row.get(key, "-") for key in head] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells
    )


def held(tracking_uri: str) -> list[tuple[str, str, str]]:
    """Every version of raystill's models as texts: its URI, what it is, and how this version of raystill treats it."""
    client, found = registry_client(tracking_uri), []
    try:
        for model in _models(client, None):
            champion = str(model.aliases.get(CHAMPION))
            for version in _versions(client, model, every=True):
                old = "fingerprint" not in version.tags
                what = f"adapter of {version.tags.get('method', '?')} by {'an earlier' if old else 'this'} version"
                stays = "; no later one replaces this champion by itself, as it was measured otherwise"
                becomes = "pulled as it is" + (stays if old and str(version.version) == champion else "")
                found.append((f"models:/{model.name}/{version.version}", what, becomes))
    except AWAY as error:
        raise unreachable(tracking_uri, error) from error
    return found


def _models(client: MlflowClient, name: str | None) -> list[RegisteredModel]:
    if name is None:
        found = client.search_registered_models()
        models = list(found)
        while found.token:
            found = client.search_registered_models(page_token=found.token)
            models += found
        return models
    try:
        return [client.get_registered_model(name)]
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        names = [model.name for model in client.search_registered_models(max_results=20)]
        raise PullError(f"there is no model {name!r}; there are: {', '.join(names) or 'none yet'}") from error


def _versions(client: MlflowClient, model: RegisteredModel, *, every: bool) -> list[ModelVersion]:
    """Versions of a model that raystill registered, newest first: every one, or the newest and those with an alias."""
    found = client.search_model_versions(f"name = '{model.name}'")
    ours = sorted((v for v in found if DIGEST_TAG in v.tags), key=lambda v: -int(v.version))
    named = {str(number) for number in model.aliases.values()}
    return [v for i, v in enumerate(ours) if every or i == 0 or str(v.version) in named]


def _row(model: RegisteredModel, version: ModelVersion) -> dict[str, str]:
    aliases = sorted(alias for alias, number in model.aliases.items() if str(number) == str(version.version))
    figures = {key: f"{float(value):.4g}" for key, value in version.tags.items() if key.startswith(FIGURE)}
    return {
        "model": f"models:/{model.name}/{version.version}",
        "aliases": ", ".join(aliases) or "-",
        "method": version.tags.get("method", "-"),
        "base": version.tags.get("base", "-"),
        "evaluation": version.tags.get("evaluation_digest", "-")[:12],
        **figures,
    }
