"""Fixtures of whole jobs, and one Ray session for all tests that need no more than a cluster."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.workplace import few, typed, workplace

if TYPE_CHECKING:  # else in the fixtures: after the hook that checks shapes is in place
    from raystill.data.derive import Index
    from raystill.data.local import LocalStore
    from raystill.launch.settings import Cluster

__all__ = ["few", "typed", "workplace"]
PLATFORM = Path(__file__).parents[2] / "platform"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that may take the longest come first, so that none of them runs alone at the end."""

    def limit(item: pytest.Item) -> float:
        marker = item.get_closest_marker("timeout")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=limit, reverse=True)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RAYSTILL_HOME of the session's workers."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def session(s3: dict[str, str], home: Path) -> Iterator["Cluster"]:
    """Ray on this machine with room for two training workers; its processes inherit the S3 server's address and key."""
    from raystill.launch.cluster import ray_session
    from raystill.launch.settings import Cluster, Share

    cluster = Cluster(workers=2, worker=Share(cpus=0.8), actors=1, max_failures=0)
    with ray_session(cluster, {"PYTHONPATH": str(PLATFORM), "OMP_NUM_THREADS": "1", "RAYSTILL_HOME": str(home)}):
        yield cluster


@pytest.fixture(scope="session")
def targets(tiny_pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple["LocalStore", "Index"]:
    """Targets of 14 samples in 5 shards."""
    from raystill.data.derive import Source, Stage, derive
    from raystill.data.local import LocalStore
    from raystill.data.records import Reading
    from raystill.data.shards import Sample, pack
    from raystill.targets.targets import Generation, TargetTransform

    place = tmp_path_factory.mktemp("data")
    source, target = (LocalStore(uri=str(place / part)) for part in ("source", "targets"))
    for i in range(5):
        captions = {f"s{i}{j}": ("red heart", "cat face")[j % 2] for j in range(2 + i % 3)}
        source.write(f"{i:06d}.tar", pack(Sample(key=k, members={"txt": c.encode()}) for k, c in captions.items()))
    make = partial(TargetTransform, str(tiny_pipeline), Generation(solver_steps=2), Reading(), 0, 8, "float32")
    return target, derive(Stage(Source.of(source), target, {}, make))
