"""Whole jobs on their surroundings: object store, cluster or this process alone, then the stages."""

import logging
from contextlib import ExitStack
from pathlib import Path

from raystill.models.pipeline import check_pipeline
from raystill.orchestration.distill import Distilled, Seconds, check_inputs, compute_targets, distil
from raystill.orchestration.launcher import Launcher, LocalLauncher
from raystill.orchestration.pretrain import Pretraining, pretrain
from raystill.orchestration.run import Cluster, Run
from raystill.orchestration.services import object_store, upload_sample

log = logging.getLogger(__name__)
DIRECTORY = Path(".raystill")  # everything that is kept on this machine


def launch_distillation(run: Run, *, local: bool = False, seconds: Seconds | None = None) -> Distilled:
    """Distil: targets, training, evaluation, registration. `local` does it in this process, without Ray."""
    seconds = seconds or Seconds()
    run.check()
    check_pipeline(Path(run.teacher))
    with ExitStack() as stack:
        _open_store(stack, run, seconds)
        check_inputs(run)
        launcher = _launcher(stack, run.cluster, local, seconds)
        return distil(run, launcher, DIRECTORY, seconds)


def launch_targets(run: Run, *, local: bool = False) -> str:
    """Compute the targets alone; returns where they are."""
    with ExitStack() as stack:
        seconds = Seconds()
        _open_store(stack, run, seconds)
        check_inputs(run)
        store, _ = compute_targets(run, _launcher(stack, run.cluster, local, seconds))
        return store.uri


def launch_pretraining(run: Pretraining, *, local: bool = False) -> Path:
    """Train a pipeline from scratch."""
    run.check()
    with ExitStack() as stack:
        return pretrain(run, _launcher(stack, run.cluster, local, Seconds()))


def _open_store(stack: ExitStack, run: Run, seconds: Seconds) -> None:
    """Start the embedded store where the run asks for it, and bring the sample there."""
    with seconds.stage("object store"):
        stack.enter_context(object_store(run.store, DIRECTORY))
        if run.sample is not None:
            upload_sample(run.sample, run.shards)


def _launcher(stack: ExitStack, cluster: Cluster, local: bool, seconds: Seconds) -> Launcher:
    if local:
        return LocalLauncher()
    from raystill.orchestration.cluster import RayLauncher, ray_session  # the local path must run where Ray is not installed

    with seconds.stage("cluster"):
        stack.enter_context(ray_session(cluster))
    return RayLauncher(cluster, DIRECTORY)
