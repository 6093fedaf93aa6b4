"""Stages, readers and trainers on nodes of their own, chosen by resources and labels."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.nodes import Node, Nodes, started

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
MIB = 2**20
NODES = (
    Node(cpus=0),  # the head, and its driver
    Node(labels={"role": "trainer"}, store_bytes=80 * MIB),
    Node(labels={"role": "teacher"}, resources={"teacher": 1}, store_bytes=80 * MIB),
    Node(labels={"role": "reader"}, store_bytes=80 * MIB),
)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with started(NODES, tmp_path_factory.mktemp("home")) as found:
        yield found


def test_work_is_where_its_labels_are_and_no_sample_passes_through_the_driver(nodes: Nodes, tmp_path: Path) -> None:
    done = nodes.run(sys.executable, str(Path(__file__).with_name("placed.py")), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["derived"], found["trained"]) == (["teacher"], "trainer")
    assert found["samples"] == 512
    stores, total = found["stores"], found["bytes"]
    assert total > stores["reader"]["capacity"] * 1.4
    assert stores["reader"]["created"] >= total  # every sample was read there, once
    assert stores["head"]["created"] < total / 100
    assert stores["teacher"]["created"] < total / 100  # from store to store
    for store in stores.values():
        assert store["spilled"] <= store["capacity"] / 4


def test_a_run_that_finds_no_room_says_where_it_looked(nodes: Nodes) -> None:
    code = (
        "from raystill.launch.cluster import ray_session; from raystill.launch.settings import Cluster, Share\n"
        "with ray_session(Cluster(workers=2, worker=Share(labels={'role': 'painter'})), {}): pass"
    )
    done = nodes.run(sys.executable, "-c", code)
    assert "needs 2 training workers of 1 CPU, role=painter each, and the cluster holds 0 of them" in done.stderr
    assert "1 CPU, 1 teacher, role=teacher" in done.stderr
