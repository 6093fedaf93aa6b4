"""RayFlow's claims, measured on the shipped teacher: sigma, targets, times, jumps, paths and losses."""

from dataclasses import replace
from typing import Any, get_args

from raystill.data.targets import Assigned, Expectation, Generated, Independent, Inverted
from raystill.flow.importance import GridTimes, SecondMomentTimes
from raystill.flow.jumps import Jump
from raystill.flow.objectives import Objective
from raystill.flow.paths import PairedDiffusionPath, RayPath
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, UniformTimes, UShapedTimes
from raystill.models.student import Sampling
from raystill.orchestration.run import Run, Targets
from raystill.orchestration.study import Question, Study, Variant
from raystill.recipes import nano

SIGMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SOLVER_STEPS = 8  # of every estimator, so that a target costs as many teacher steps with each


def base() -> Run:
    """The demo's run on a smaller budget."""
    run = nano.run()
    return replace(
        run, name="rayflow-study", model="rayflow-study", training=replace(run.training, steps=150, picture_every=0)
    )


def run() -> Study:
    """The whole study."""
    return Study(
        name="rayflow_study",
        base=base(),
        questions=(sigma(), estimators(), time_samplers(), jumps(), paths(), objectives()),
    )


def sigma() -> Question:
    """The paper's figure 3."""
    return Question(
        title="sigma",
        text="Quality against the variance coefficient (the paper's figure 3).",
        variants=tuple(Variant(label=f"sigma {s:g}", x=s, changes={"method.path": RayPath(sigma=s)}) for s in SIGMAS),
    )


def estimators() -> Question:
    """The paper's table 3: with and without the instance's own target."""
    kinds: dict[str, Any] = {
        "generated (default)": Generated(steps=SOLVER_STEPS),
        "inverted": Inverted(steps=SOLVER_STEPS),
        "expectation": Expectation(steps=SOLVER_STEPS),
        "independent (no instance target)": Independent(),
        "assigned": Assigned(),
    }
    return Question(
        title="target means",
        text="Where the target mean comes from; `independent` is training without instance targets (table 3).",
        variants=tuple(Variant(label=n, changes={"targets": Targets(estimator=e)}) for n, e in kinds.items()),
    )


def time_samplers() -> Question:
    """The paper's ablation of the Time Sampler."""
    kinds: dict[str, Any] = {
        "the sampler's own times (default)": SamplingTimes(),
        "uniform": UniformTimes(),
        "logit-normal": LogitNormalTimes(),
        "U-shaped": UShapedTimes(),
        "second moment": SecondMomentTimes(),
        "grid": GridTimes(),
        "Stein": SteinTimes(),
    }
    return Question(
        title="time samplers",
        variants=tuple(Variant(label=n, changes={"method.times": t}) for n, t in kinds.items()),
    )


def jumps() -> Question:
    """Anchored and ODE jumps, deterministic and stochastic."""
    cases = [(s, j) for s in (0.0, 0.1, 0.3) for j in get_args(Jump)]
    plain = tuple(
        Variant(label=f"sigma {s:g}, {j}", changes={"method.path": RayPath(sigma=s), "sampling": Sampling(jump=j)})
        for s, j in cases
    )
    noisy = Variant(
        label="sigma 0.3, anchored, eta 1",
        changes={"method.path": RayPath(sigma=0.3), "sampling": Sampling(jump="anchored", eta=1.0)},
    )
    return Question(title="jumps", variants=(*plain, noisy))


def paths() -> Question:
    """The ray path and the paired diffusion path, with and without the instance's target."""
    both: dict[str, Any] = {"ray": RayPath(), "paired diffusion": PairedDiffusionPath()}
    targets: dict[str, Any] = {"": Generated(steps=SOLVER_STEPS), ", independent": Independent()}
    return Question(
        title="paths",
        variants=tuple(
            Variant(label=f"{name}{suffix}", changes={"method.path": path, "targets": Targets(estimator=estimator)})
            for name, path in both.items()
            for suffix, estimator in targets.items()
        ),
    )


def objectives() -> Question:
    """Which loss."""
    kinds = {
        "velocity, squared (default)": Objective(),
        "data, squared": Objective(target="data"),
        "data, pseudo-Huber": Objective(target="data", distance="pseudo_huber"),
        "velocity, pseudo-Huber": Objective(distance="pseudo_huber"),
        "data, min-SNR": Objective(target="data", weighting="min_snr"),
    }
    return Question(
        title="losses", variants=tuple(Variant(label=n, changes={"method.objective": o}) for n, o in kinds.items())
    )
