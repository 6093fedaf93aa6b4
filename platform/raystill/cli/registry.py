"""The registry and the object store of the runs that were typed here, for commands that read them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from raystill.config.errors import UserError
from raystill.config.extras import need

DEFAULT_MODEL = "models:/nano-rayflow@champion"


def registry(directory: Path) -> str:
    """Address of the environment's tracking server, or of the file that runs keep; UserError where there is neither."""
    need("mlflow", purpose="the registry")
    from raystill.tracking.tracking import tracking_uri

    if "MLFLOW_TRACKING_URI" not in os.environ and not (directory / "mlflow.db").exists():
        raise UserError(
            f"there is no registry at {directory}/mlflow.db: run `raystill demo` first, "
            "or set MLFLOW_TRACKING_URI to a server, or RAYSTILL_HOME to where submitted jobs keep it (~/.raystill)"
        )
    uri = tracking_uri(directory)
    assert uri is not None
    return uri


@contextmanager
def stored(directory: Path) -> Iterator[None]:
    """Start the embedded object store where the registry's files lie in one and no other is configured."""
    from raystill.launch.services import EMBEDDED, object_store

    embedded = (directory / EMBEDDED).is_dir() and not any(
        k in os.environ for k in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI")
    )
    with object_store("embedded" if embedded else "environment", directory):
        yield


def fetch(model: str, to: Path | None) -> Path:
    """Pull an adapter from the tracking server of the environment, or from the one that runs keep under .raystill/."""
    from raystill.config.home import DIRECTORY
    from raystill.tracking.pull import pull

    uri = registry(DIRECTORY)
    with stored(DIRECTORY):
        return pull(model, to, tracking_uri=uri)


def directory_of(model: str) -> Path:
    """The directory of an adapter: the given one, or one that is fetched from the registry."""
    return Path(model) if Path(model).is_dir() else fetch(model, None)
