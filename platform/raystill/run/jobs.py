"""Whole jobs as they are typed: their checks, object store and cluster (or this process alone), and stages."""

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from raystill.config.errors import UserError
from raystill.config.home import DIRECTORY, HOME
from raystill.data.store import is_local
from raystill.launch.command import LEVEL
from raystill.launch.launcher import Launcher, LocalLauncher
from raystill.launch.services import object_store, upload_sample
from raystill.launch.settings import Cluster
from raystill.models.hub import pinned
from raystill.run.distill import (
    DistillationResult,
    Seconds,
    check_inputs,
    checkpoints_of,
    compute_targets,
    distil,
    trained_student,
)
from raystill.run.evaluate import evaluate, floor_of, spread, table
from raystill.run.pretrain import pretrain
from raystill.run.settings import Pretraining, Run
from raystill.run.validate import share_out, validate
from raystill.tracking.tracking import Tracking, tracking_uri
from raystill.training.profiling import PROFILE
from raystill.training.task import averages_after


@contextmanager
def surroundings(run: Run, *, local: bool = False, seconds: Seconds | None = None) -> Iterator[Launcher]:
    """Check a run, open its object store with the sample in it, give its launcher, and close everything at the end."""
    seconds = seconds or Seconds()
    validate(run, local=local)
    with ExitStack() as stack:
        with seconds.stage("object store"):
            variables = stack.enter_context(object_store(run.store, DIRECTORY, run.port))
            if run.sample is not None:
                upload_sample(run.sample, run.shards)
        check_inputs(run)
        launcher = _launcher(stack, run.cluster, local, seconds, variables)
        if not local:
            check_places(run)
        yield launcher


def launch_distillation(run: Run, *, local: bool = False, seconds: Seconds | None = None) -> DistillationResult:
    """Distil a teacher: targets, training, evaluation, registration; `local` does all in this process, without Ray."""
    seconds, run = seconds or Seconds(), _pinned(run)
    with surroundings(run, local=local, seconds=seconds) as launcher:
        return distil(run, launcher, DIRECTORY, seconds)


def launch_targets(run: Run, *, local: bool = False) -> str:
    """Compute a run's targets and nothing else; return the uri of their store."""
    run = _pinned(run)
    with surroundings(run, local=local) as launcher:
        return compute_targets(run, launcher)[0].uri


def launch_evaluation(run: Run, *, local: bool = False) -> str:
    """Evaluate a finished training with three seeds of the starts, from the recipe's on; return figures, spread, and
    the floor of the Frechet distances. UserError where the training has not been finished.
    """
    run = _pinned(run)
    with surroundings(run, local=local) as launcher:
        targets, index = compute_targets(run, launcher)
        checkpoints = checkpoints_of(run, targets)
        if averages_after(checkpoints, run.training.steps) is None:
            raise UserError(
                f"{run.name} has not been trained to its end yet; run raystill distill with the same settings first"
            )
        seeds = range(run.evaluation.seed, run.evaluation.seed + 3)
        changed = [replace(run, evaluation=replace(run.evaluation, seed=seed)) for seed in seeds]
        trained = trained_student(run, checkpoints, targets, index)
        evaluated = [evaluate(one, launcher, trained) for one in changed]
        floor = floor_of(run, launcher)
    said = f"the floor, of two sets of the teacher's own {run.evaluation.reference_steps} steps: {floor:.2f}"
    return "\n\n".join([*(table(one) for one in evaluated), spread(evaluated), said])


def _pinned(run: Run) -> Run:
    """The run with the commit of its teacher, where that is a name on the Hub."""
    return replace(run, teacher=pinned(run.teacher))


def launch_pretraining(run: Pretraining, *, local: bool = False) -> Path:
    """Train a pipeline from scratch; return its directory."""
    run.check()
    if not local:
        for prefix, task in (("autoencoder.", run.autoencoder), ("denoiser.", run.denoiser)):
            share_out(task.training.lanes, run.cluster.workers, prefix)
    tracking = Tracking(
        uri=tracking_uri(DIRECTORY), experiment=run.experiment, name=run.name, directory=DIRECTORY.resolve()
    )
    with ExitStack() as stack:
        return pretrain(run, _launcher(stack, run.cluster, local, Seconds(), {}), tracking)


def check_places(run: Run) -> None:
    """Refuse, with UserError, stores and files that only this machine reaches if the cluster has or may get others."""
    from raystill.launch.placement import machines

    others = sorted(machines())
    here = {
        "store=embedded": (run.store == "embedded", "--set store=environment, and AWS_* on every node"),
        f"shards={run.shards}": (is_local(run.shards), "--set shards=s3://..."),
        f"work={run.work}": (is_local(run.work), "--set work=s3://..."),
        "MLflow's SQLite file": (
            (tracking_uri(DIRECTORY) or "sqlite:").startswith("sqlite:"),
            "MLFLOW_TRACKING_URI=http://...",
        ),
    }
    found = [f"  {name}: {advice}" for name, (local, advice) in here.items() if local]
    if found and (len(others) > 1 or run.cluster.grows):
        there = "can grow" if run.cluster.grows else f"has {len(others)} machines ({', '.join(others[:4])})"
        raise UserError(f"the cluster {there}, and only this machine reaches\n" + "\n".join(found))


def _launcher(
    stack: ExitStack, cluster: Cluster, local: bool, seconds: Seconds, variables: Mapping[str, str]
) -> Launcher:
    if local:
        return LocalLauncher()
    from raystill.launch.cluster import (  # the local path must run where Ray is not installed
        RayLauncher,
        ray_session,
    )

    told = {name: os.environ[name] for name in (LEVEL, PROFILE) if name in os.environ}
    home = told if HOME in os.environ else {**told, HOME: str(DIRECTORY.resolve())}
    with seconds.stage("cluster"):
        stack.enter_context(ray_session(cluster, {**variables, **home}))
    return RayLauncher(cluster, DIRECTORY)
