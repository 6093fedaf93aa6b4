"""RayFlow's claims, measured on the shipped teacher: sigma, targets, times, jumps and losses."""

from dataclasses import replace
from typing import Any, get_args

from raystill.flow.importance import GridTimes, SecondMomentTimes
from raystill.flow.jumps import Jump
from raystill.flow.objectives import Objective, Weighting
from raystill.flow.paths import RayPath
from raystill.flow.stein import SteinTimes
from raystill.flow.times import LogitNormalTimes, SamplingTimes, UniformTimes, UShapedTimes
from raystill.launch.settings import Cluster, Share
from raystill.methods.rayflow import RayFlow
from raystill.models.sampling import Sampling
from raystill.recipes import nano
from raystill.run.settings import Run, Targets
from raystill.targets.targets import Assignment, Expectation, Generation, IndependentMeans, Inversion
from raystill_studies.gradients import GradientProbe
from raystill_studies.probes import Probe
from raystill_studies.study import Question, Study, Variant

HUBER = Objective(target="data", distance="pseudo_huber")
SIGMAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SOLVER_STEPS = 16  # of every estimator that asks the teacher, so that a target costs as many teacher steps with each
PLAIN = Objective(target="velocity", distance="squared")
GENERATED = Generation(solver_steps=SOLVER_STEPS, guidance=1.0)


def base() -> Run:
    """The demo without captions, on a smaller budget, with the plainest of everything that is varied."""
    run = nano.open_ended()
    return replace(
        run,
        method=RayFlow(path=RayPath(), times=SamplingTimes(), objective=PLAIN),
        sampling=Sampling(),
        name="rayflow-study",
        model="rayflow-study",
        training=replace(
            run.training, steps=100, lanes=1, lane_size=32, log_every=5, checkpoint_every=100, picture_every=0
        ),
        # The same pictures for every run: differences are of pairs.
        evaluation=replace(run.evaluation, shards=2, pictures=128),
        cluster=Cluster(workers=1, worker=Share()),  # a run is one process; as many run at once as there is room
    )


def run() -> Study:
    """The whole study."""
    return Study(
        name="rayflow",
        base=base(),
        probe=Probe(shards=2, captions=16),
        gradients=GradientProbe(shards=2, instances=8),
        questions=(
            sigma(), estimators(), time_samplers(), laws_as_objectives(), ablation(), jumps(), objectives(), together(),
        ),
    )  # fmt: skip


def sigma() -> Question:
    """The paper's figure 3."""
    return Question(
        title="sigma",
        probes=True,
        text="Quality against the variance coefficient (the paper's figure 3).",
        variants=tuple(Variant(label=f"sigma {s:g}", x=s, changes={"method.path": RayPath(sigma=s)}) for s in SIGMAS),
    )


def estimators() -> Question:
    """The paper's table 3: with and without the instance's own target."""
    kinds: dict[str, Any] = {
        "generated": GENERATED,
        "inverted": Inversion(solver_steps=SOLVER_STEPS),
        "expectation": Expectation(solver_steps=SOLVER_STEPS),
        "independent (no instance target)": IndependentMeans(),
        "assigned": Assignment(),
    }
    return Question(
        title="target means",
        probes=True,
        text="Where the target mean comes from; `independent` is training without instance targets (table 3).",
        variants=tuple(Variant(label=n, changes={"targets": Targets(estimator=e)}) for n, e in kinds.items()),
    )


def time_samplers() -> Question:
    """The paper's ablation of the Time Sampler."""
    kinds: dict[str, Any] = {
        "uniform": UniformTimes(),
        "logit-normal, weighted": LogitNormalTimes(importance=0.1),
        "U-shaped, weighted": UShapedTimes(importance=0.1),
        "second moment": SecondMomentTimes(),
        "grid": GridTimes(),
        "Stein": SteinTimes(),
        "grid over the sampler's own": GridTimes(base=SamplingTimes()),
    }
    return Question(
        title="time samplers",
        text="""All but the last one have the same objective, the loss over uniform times, and weight what they draw;
the last one weights the law of the sampler's own times.""",
        gradients=True,
        variants=tuple(Variant(label=n, changes={"method.times": t}) for n, t in kinds.items()),
    )


def laws_as_objectives() -> Question:
    """Laws of times that are objectives themselves."""
    kinds: dict[str, Any] = {
        "uniform": UniformTimes(),
        "logit-normal": LogitNormalTimes(),
        "U-shaped": UShapedTimes(),
        "the sampler's own": SamplingTimes(),
        "the one-step variant": SamplingTimes(student_steps=1),
    }
    return Question(
        title="laws of times without weights",
        text="The loss under each of these laws is another objective: where a student is taught, not how noisily.",
        variants=tuple(Variant(label=n, changes={"method.times": t}) for n, t in kinds.items()),
    )


def ablation() -> Question:
    """The paper's table 3: neither, one or both of its two parts."""
    means: dict[str, Any] = {"independent": IndependentMeans(), "generated": GENERATED}
    laws: dict[str, Any] = {"uniform times": UniformTimes(), "Stein times": SteinTimes()}
    return Question(
        title="instance targets and the Time Sampler",
        text="With and without the instance's own target mean and the learned law of times (the paper's table 3).",
        variants=tuple(
            Variant(label=f"{m}, {t}", changes={"targets": Targets(estimator=means[m]), "method.times": laws[t]})
            for m in means
            for t in laws
        ),
    )


def jumps() -> Question:
    """Anchored and ODE jumps, deterministic and stochastic."""
    cases = [(s, j) for s in SIGMAS for j in get_args(Jump)]
    plain = tuple(
        Variant(label=f"sigma {s:g}, {j}", changes={"method.path": RayPath(sigma=s), "sampling": Sampling(jump=j)})
        for s, j in cases
    )
    noisy = Variant(
        label="sigma 0.3, anchored, eta 1",
        changes={"method.path": RayPath(sigma=0.3), "sampling": Sampling(jump="anchored", eta=1.0)},
    )
    return Question(title="jumps", variants=(*plain, noisy))


def objectives() -> Question:
    """Which loss."""
    kinds = {
        "velocity, squared": PLAIN,
        "data, squared": replace(PLAIN, target="data"),
        "data, pseudo-Huber": HUBER,
        "velocity, pseudo-Huber": replace(PLAIN, distance="pseudo_huber"),
        **{
            f"data, {w}": replace(PLAIN, target="data", weighting=w)
            for w in get_args(Weighting)
            if w not in ("uniform", "p2")
        },
    }
    noisy = {
        "velocity, squared, sigma 0.1": PLAIN,
        "noise, squared, sigma 0.1": replace(PLAIN, target="noise"),
        "noise, p2, sigma 0.1": replace(PLAIN, target="noise", weighting="p2"),
    }
    return Question(
        title="losses",
        text="The last three are on a path with noise of its own, without which the noise cannot be the target.",
        variants=(
            *(Variant(label=n, changes={"method.objective": o}) for n, o in kinds.items()),
            *(
                Variant(label=n, changes={"method.objective": o, "method.path": RayPath(sigma=0.1)})
                for n, o in noisy.items()
            ),
        ),
    )


def together() -> Question:
    """Whether what is best by itself is so together."""
    best: dict[str, Any] = {"method.objective": HUBER, "method.times": GridTimes(base=SamplingTimes())}
    return Question(
        title="the best together",
        text="""The loss on data with pseudo-Huber, and the learned law over the sampler's own times; then the anchored
jump beside them.""",
        variants=(
            Variant(label="the plain one"),
            Variant(label="loss and law", changes=best),
            Variant(label="loss and law, anchored", changes={**best, "sampling": Sampling(jump="anchored")}),
        ),
    )
