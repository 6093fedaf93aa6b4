"""Whole jobs on their surroundings: object store, cluster or this process alone, then the stages."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raystill.models.pipeline import check_pipeline
from raystill.orchestration.distill import Distilled, Seconds, check_inputs, compute_targets, distil
from raystill.orchestration.launcher import Launcher, LocalLauncher
from raystill.orchestration.pretrain import Pretraining, pretrain
from raystill.orchestration.run import Cluster, Run
from raystill.orchestration.services import object_store, upload_sample

log = logging.getLogger(__name__)
DIRECTORY = Path(".raystill")  # everything that is kept on this machine


@contextmanager
def surroundings(run: Run, *, local: bool = False, seconds: Seconds | None = None) -> Iterator[Launcher]:
    """Everything a run needs, checked first and taken down at the end: its store with the sample, and its launcher."""
    seconds = seconds or Seconds()
    run.check()
    check_pipeline(Path(run.teacher))
    with ExitStack() as stack:
        with seconds.stage("object store"):
            stack.enter_context(object_store(run.store, DIRECTORY, run.port))
            if run.sample is not None:
                upload_sample(run.sample, run.shards)
        check_inputs(run)
        yield _launcher(stack, run.cluster, local, seconds)


def launch_distillation(run: Run, *, local: bool = False, seconds: Seconds | None = None) -> Distilled:
    """Distil: targets, training, evaluation, registration. `local` does it in this process, without Ray."""
    seconds = seconds or Seconds()
    with surroundings(run, local=local, seconds=seconds) as launcher:
        return distil(run, launcher, DIRECTORY, seconds)


def launch_targets(run: Run, *, local: bool = False) -> str:
    """Compute the targets alone; returns where they are."""
    with surroundings(run, local=local) as launcher:
        return compute_targets(run, launcher)[0].uri


def launch_pretraining(run: Pretraining, *, local: bool = False) -> Path:
    """Train a pipeline from scratch."""
    run.check()
    with ExitStack() as stack:
        return pretrain(run, _launcher(stack, run.cluster, local, Seconds()))


def _launcher(stack: ExitStack, cluster: Cluster, local: bool, seconds: Seconds) -> Launcher:
    if local:
        return LocalLauncher()
    from raystill.orchestration.cluster import (  # the local path must run where Ray is not installed
        RayLauncher,
        ray_session,
    )

    with seconds.stage("cluster"):
        stack.enter_context(ray_session(cluster))
    return RayLauncher(cluster, DIRECTORY)
