"""MLflow's experiments, checked before anything is computed for them."""

import os

from raystill.config.errors import UserError
from raystill.data.store import StoreError, open_store
from raystill.tracking.tracking import check_experiment


def prepare_experiment(uri: str | None, name: str, artifacts: str | None = None) -> None:
    """Find or make an experiment of MLflow; UserError where MLflow does not answer, where it keeps the experiment's
    files elsewhere than in `artifacts`, or in a bucket that cannot be reached. Without MLflow, whose `uri` is None,
    nothing is done.
    """
    place = check_experiment(uri, name, artifacts)
    theirs = os.environ.get("MLFLOW_S3_ENDPOINT_URL")  # of MLflow's files alone, which our stores do not know
    if place is None or not place.startswith("s3://") or theirs not in (None, os.environ.get("AWS_ENDPOINT_URL")):
        return
    try:
        open_store(place).check()
    except StoreError as error:
        raise UserError(
            f"the MLflow experiment {name!r} keeps its files at {place}, and {error}\nReach that store, or name "
            "another experiment: --set experiment=NAME"
        ) from error
