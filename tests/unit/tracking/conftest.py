"""One SQLite file for all tests of tracking: making its tables takes longer than any of them."""

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from tests.unit.tracking.adapters import base, cache, export, run_id

from raystill.tracking.runs import open_experiment

__all__ = ["base", "cache", "export", "run_id"]


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """MLflow keeps the address that a test told it last, in this process and for its children."""
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # its way to take one back
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    os.environ.pop("MLFLOW_REGISTRY_URI", None)


@pytest.fixture(scope="session")
def mlflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of the shared SQLite file."""
    home = tmp_path_factory.mktemp("mlflow")
    open_experiment(f"sqlite:///{home / 'mlflow.db'}", "first")
    return home


@pytest.fixture(scope="session")
def uri(mlflow_home: Path) -> str:
    """Address of the shared SQLite file."""
    return f"sqlite:///{mlflow_home / 'mlflow.db'}"


@pytest.fixture(scope="session")
def client(uri: str) -> MlflowClient:
    """A client of the shared SQLite file."""
    return MlflowClient(tracking_uri=uri)


@pytest.fixture(scope="session")
def _numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def experiment(_numbers: Iterator[int]) -> str:
    """A new experiment's name."""
    return f"experiment-{next(_numbers)}"
