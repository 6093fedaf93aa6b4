"""The student's training through the launcher, on two ZeRO workers of Ray Train: resumable, whichever worker dies."""

import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
import ray.cloudpickle
import torch
from PIL.Image import Image
from torch import Tensor

from raystill.config.errors import UserError
from raystill.config.fingerprint import fingerprint
from raystill.config.overrides import override
from raystill.data.derive import Index
from raystill.data.local import LocalStore
from raystill.data.store import StoreError
from raystill.engine.protocol import Optimizer
from raystill.flow.stein import SteinTimes
from raystill.launch.cluster import RayLauncher
from raystill.launch.placement import check_resources
from raystill.launch.settings import Cluster, Share
from raystill.methods.method import TIME_SAMPLER
from raystill.methods.rayflow import RayFlow
from raystill.models.weights import Lora
from raystill.recipes.resolve import resolve
from raystill.training.distillation import DistillTask
from raystill.training.loop import Training
from raystill.training.task import final_averages, last_step

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


@pytest.fixture(scope="module", autouse=True)
def sent(session: Cluster) -> Iterator[None]:
    """Workers cannot import a test: what this file defines is sent to them whole."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="module")
def task(tiny_pipeline: Path) -> DistillTask:
    """Six steps of four samples a worker; a learned law of times, a second role, is drawn from in four of them."""
    return DistillTask(
        teacher=str(tiny_pipeline),
        method=RayFlow(times=SteinTimes(warmup_steps=2)),
        weights=Lora(rank=2, alpha=2.0, targets=("to_q", "to_v", "conv1")),
        optimizer=Optimizer(learning_rate=5e-3, warmup_steps=2),
        training=Training(
            steps=6, lanes=2, lane_size=4, average_decay=0.5, log_every=2, checkpoint_every=3, picture_every=0
        ),
    )


Trained = dict[str, dict[str, Tensor]]  # role -> tensors


class Fatal:
    """A recorder whose worker is killed where step 4 is reported, the first time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __enter__(self) -> "Fatal":
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        with (self.directory / "steps").open("a") as file:
            print(step, values["loss/student"], file=file)
        killed = self.directory / "killed"
        if step == 4 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def picture(self, name: str, picture: Image, step: int) -> None:
        raise AssertionError(f"no picture was asked for, got {name} at {step}")


@pytest.fixture(scope="module")
def uninterrupted(
    session: Cluster, task: DistillTask, targets: tuple[LocalStore, Index], tmp_path_factory: pytest.TempPathFactory
) -> tuple[LocalStore, Trained]:
    """Checkpoints and averages of six steps at stage 2."""
    directory = tmp_path_factory.mktemp("uninterrupted")
    checkpoints = LocalStore(uri=str(directory / "checkpoints"))
    RayLauncher(session, directory).train(task, *targets, checkpoints, None)
    averages = final_averages(checkpoints, task.training.steps)
    assert averages is not None
    return checkpoints, averages


def close(found: Trained, expected: Trained) -> None:
    assert set(found) == set(expected) == {"student", TIME_SAMPLER}
    for role, atol in (("student", 2e-5), (TIME_SAMPLER, 1e-4)):
        assert set(found[role]) == set(expected[role])
        for name, tensor in expected[role].items():
            torch.testing.assert_close(found[role][name], tensor, rtol=1e-3, atol=atol)


def test_the_adapter_is_trained_and_only_the_last_checkpoint_is_kept(
    uninterrupted: tuple[LocalStore, Trained], task: DistillTask
) -> None:
    checkpoints, found = uninterrupted
    averages = found["student"]
    assert last_step(checkpoints) == 6
    folders = {entry.key.split("/")[0] for entry in checkpoints.list() if "/" in entry.key}
    assert folders == {"step-0000006"}
    start = dict(task.build(torch.device("cpu")).modules["student"].named_parameters())
    assert set(averages) == {name for name, parameter in start.items() if parameter.requires_grad}
    assert all("lora_" in name for name in averages)
    # B matrices start at zero.
    moved = {name: float(tensor.abs().max()) for name, tensor in averages.items() if "lora_B" in name}
    assert min(moved.values()) > 0
    assert not torch.allclose(found[TIME_SAMPLER]["table"], SteinTimes().start().float(), atol=1e-3)


def test_a_killed_worker_is_restarted_from_the_last_checkpoint_and_nothing_is_different(
    uninterrupted: tuple[LocalStore, Trained],
    session: Cluster,
    task: DistillTask,
    targets: tuple[LocalStore, Index],
    tmp_path: Path,
) -> None:
    """At another stage of ZeRO than the uninterrupted training, too."""
    checkpoints = LocalStore(uri=str(tmp_path / "checkpoints"))
    launcher = RayLauncher(replace(session, zero_stage=3, max_failures=1), tmp_path)
    launcher.train(task, *targets, checkpoints, partial(Fatal, tmp_path))
    assert (tmp_path / "killed").exists()
    lines = [line.split() for line in (tmp_path / "steps").read_text().splitlines()]
    assert [int(step) for step, _ in lines] == [2, 4, 4, 6]
    averages = final_averages(checkpoints, task.training.steps)
    assert averages is not None
    close(averages, uninterrupted[1])


def test_each_worker_keeps_a_log(uninterrupted: tuple[LocalStore, Trained], home: Path) -> None:
    for rank in (0, 1):
        (first, *_) = (home / "logs" / f"student-{rank}.log").read_text().splitlines()
        assert re.search(
            rf"INFO raystill.launch.cluster: rank {rank} of 2 on cpu: lanes \[{rank}\] from step 0 of 6$", first
        )


def test_a_finished_training_is_not_started_again(
    uninterrupted: tuple[LocalStore, Trained],
    session: Cluster,
    task: DistillTask,
    targets: tuple[LocalStore, Index],
    tmp_path: Path,
) -> None:
    checkpoints, _ = uninterrupted
    before = checkpoints.list()
    RayLauncher(session, tmp_path).train(task, *targets, checkpoints, None)
    assert checkpoints.list() == before
    assert not (tmp_path / "ray").exists()


def test_an_error_for_people_comes_out_of_the_workers(
    session: Cluster, task: DistillTask, targets: tuple[LocalStore, Index], tmp_path: Path
) -> None:
    elsewhere = LocalStore(uri=str(tmp_path / "nothing"))
    launcher = RayLauncher(session, tmp_path)
    with pytest.raises(StoreError, match="no such file"):
        launcher.train(task, elsewhere, targets[1], LocalStore(uri=str(tmp_path / "checkpoints")), None)


@pytest.mark.parametrize(
    ("cluster", "found", "advice"),
    [
        (Cluster(workers=1000, worker=Share()), "needs 1000 training workers of 1 CPU each", "--set cluster.workers="),
        (Cluster(actors=1000, actor=Share(cpus=0.5)), "needs 1000 actors of 0.5 CPU each", "--set cluster.actors="),
        (
            Cluster(worker=Share(gpus=64.0)),
            "of 1 CPU, 64 GPU each, and the cluster holds 0",
            "--set cluster.worker.cpus=0.5",
        ),
        (Cluster(actor=Share(resources={"tpu": 1.0})), "actors of 1 CPU, 1 tpu each", "--set cluster.actor.cpus=0.5"),
        (Cluster(worker=Share(labels={"zone": "b"})), "of 1 CPU, zone=b each", "--set 'cluster.worker.labels={}'"),
        (Cluster(reader_labels={"role": "reader"}), "needs 1 reader of", "--set 'cluster.reader_labels={}'"),
    ],
)
def test_a_cluster_that_is_too_small_is_refused_before_anything_starts(
    cluster: Cluster, found: str, advice: str
) -> None:
    small = replace(cluster, workers=min(cluster.workers, 1)) if cluster.actors == 1000 else cluster
    with pytest.raises(UserError, match=found) as refused:
        check_resources(small)
    assert advice in str(refused.value)
    assert f": {os.cpu_count()} CPU" in str(refused.value)
    check_resources(replace(small, grows=True))  # nodes are added later


def alone(number: int) -> dict[str, object]:
    """What a piece of independent work finds around it."""
    if number < 0:
        raise UserError("write a number from 0 on")
    return {
        "square": number**2, "process": os.getpid(), "threads": torch.get_num_threads(), "directory": str(Path.cwd()),
        "bars": os.environ.get("TQDM_DISABLE"),
    }  # fmt: skip


def test_independent_work_is_done_in_processes_of_their_own(session: Cluster, tmp_path: Path) -> None:
    launcher = RayLauncher(replace(session, workers=1, worker=Share()), tmp_path)
    found = dict(launcher.each(alone, list(range(6))))
    assert {number: one["square"] for number, one in found.items()} == {n: n**2 for n in range(6)}
    assert os.getpid() not in {one["process"] for one in found.values()}
    for one in found.values():
        assert (one["threads"], one["directory"], one["bars"]) == (1, str(Path.cwd()), "1")


OWN = """
from dataclasses import dataclass
from beside_own import twice
from raystill.methods.rayflow import RayFlow

@dataclass(frozen=True, slots=True, kw_only=True)
class Own(RayFlow):
    def doubled(self) -> float:
        return twice(self.path.sigma)
"""


def test_a_method_of_somebody_s_file_and_the_file_beside_it_reach_the_workers(session: Cluster, tmp_path: Path) -> None:
    (tmp_path / "beside_own.py").write_text("def twice(x):\n    return 2 * x\n")
    (tmp_path / "own_method.py").write_text(OWN)
    run = override(resolve("nano"), {"method": f"{tmp_path}/own_method.py:Own", "method.path.sigma": 0.25})
    launcher = RayLauncher(replace(session, workers=1, worker=Share()), tmp_path)
    assert dict(launcher.each(lambda method: (method.doubled(), fingerprint(method)), [run.method])) == {
        0: (0.5, fingerprint(run.method))
    }


def test_the_error_for_people_of_independent_work_comes_out(session: Cluster, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write a number from 0 on"):
        list(RayLauncher(replace(session, workers=1), tmp_path).each(alone, [-1]))


def test_a_cluster_of_one_machine_listens_on_loopback_only() -> None:
    ray.get(ray.remote(lambda: None).remote())
    processes = psutil.Process().children(recursive=True)
    found = {c.laddr.ip for p in processes for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN}
    assert found <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert found
