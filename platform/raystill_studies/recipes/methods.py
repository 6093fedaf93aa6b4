"""Every method on the shipped teacher at equal budgets."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from raystill.data.records import Reading
from raystill.flow.objectives import Objective
from raystill.flow.times import UniformTimes
from raystill.launch.settings import Cluster, Share
from raystill.methods.lightning import Lightning
from raystill.methods.rayflow import RayFlow
from raystill.recipes import nano, nano_methods
from raystill.run.settings import Run
from raystill.search.space import Choice, Range
from raystill_studies.comparison import Comparison, Entrant
from raystill_studies.probes import Probe

SHARDS = 3  # that are trained on: 768 pictures, whose stored targets the second budget must pay for
CAPTIONS = (  # of the first 128 pictures of the first two shards that keep theirs
    "light bulb", "flag india", "cherries", "duck", "palm tree", "hot pepper", "pear", "christmas tree", "leg",
)  # fmt: skip
RATES = (2e-4, 8e-4, 3e-3)  # of the first trials
RATE = Range(path="optimizer.learning_rate", low=5e-5, high=1e-2, log=True)
ADVERSARY = Range(path="method.learning_rate", low=1e-5, high=1e-3, log=True)


def run() -> Comparison:
    """All methods, RayFlow first."""
    demo = nano.run()
    base = replace(
        demo,
        name="methods",
        model="methods",
        reading=Reading(drop_captions=0.5),
        training=replace(demo.training, lanes=1, lane_size=32, log_every=10, picture_every=0),
        targets=replace(demo.targets, shards=SHARDS),
        evaluation=replace(
            demo.evaluation, shards=2, pictures=128, seed=2000, teacher_steps=(1, 2, 4, 8, 25, 50), captions=CAPTIONS
        ),
        # A run is one process; as many run at once as there is room for. A little is left for readers.
        cluster=Cluster(workers=1, worker=Share(cpus=0.95)),
    )
    return Comparison(
        name="methods", base=base, entrants=entrants(), trials=len(RATES) + 2,
        first=tuple({RATE.path: rate} for rate in RATES), updates=100, seconds=150.0,
        probe=Probe(shards=1, captions=24),
    )  # fmt: skip


def entrants() -> tuple[Entrant, ...]:
    """As they are in their own recipes, each with what its trials search beside the learning rate."""
    sigma = Range(path="method.path.sigma", low=0.0, high=0.2)
    loss = _choice("method.premetric", "SquaredError", "PseudoHuber")
    decay = _choice("optimizer.decay", "cosine", "constant")
    return (
        _entrant("RayFlow", nano_methods.rayflow_nano(), sigma, shares={"times.warmup_steps": 0.2}),
        _entrant("RayFlow, plain", _plain(), sigma),
        _entrant("PeRFlow", nano_methods.perflow_nano(), _choice("method.caption_dropout", 0.0, 0.1), sampled=(4, 8)),
        _entrant("Reflow", nano_methods.reflow_nano(), loss, paper="2209.03003"),
        _entrant(
            "InstaFlow", nano_methods.instaflow_nano(), decay, paper="2309.06380", searched=(1,),
            shares={"one_step_from": 0.5},
        ),
        _entrant("rf++", nano_methods.rfpp_nano(), _choice("method.times.importance", None, 0.1), paper="2405.20320"),
        _entrant("Rectified Diffusion", nano_methods.rectified_nano(), loss, shares={"consistency_from": 0.67}),
        _entrant("phased Rectified", nano_methods.phased_nano(), _choice("method.windows", 2, 4), sampled=(4, 8)),
        _entrant("LCM", nano_methods.lcm_nano(), _choice("method.intervals", 25, 50)),
        _entrant("TCD", nano_methods.tcd_nano(), _choice("method.intervals", 24, 40), paper="2402.19159"),
        _entrant("TSCD", nano_methods.tscd_nano(), decay, paper="2404.13686", shares={"stage_steps": 0.25}),
        _entrant("CTM", nano_methods.ctm_nano(), Range(path="method.denoising", low=0.3, high=1.0)),
        _entrant("SCott", nano_methods.scott_nano(), Range(path="method.eta", low=0.0, high=0.3)),
        _entrant("DMD2", nano_methods.dmd2_nano(), _adversarial(1e-3, 1e-1), ADVERSARY),
        _entrant(
            "Lightning to 1 step", nano_methods.lightning_nano(), decay, ADVERSARY, searched=(1,),
            shares={"stage_steps": 0.2},
        ),
        _entrant(
            "Lightning to 4 steps", _lightning(), decay, ADVERSARY, sampled=(4, 8), searched=(4,),
            shares={"stage_steps": 0.34},
        ),
        _entrant("ADD", nano_methods.add_nano(), _adversarial(0.03, 1.0), ADVERSARY),
    )  # fmt: skip


def _lightning() -> Run:
    """Its published students are one for each number of steps."""
    return replace(nano_methods.lightning_nano(), method=Lightning(stages=(32, 8, 4)))


def _plain() -> Run:
    """RayFlow without its Time Sampler and the loss that the study of it chose."""
    method = RayFlow(times=UniformTimes(), objective=Objective(target="velocity", distance="squared"))
    return replace(nano_methods.rayflow_nano(), method=method)


def _choice(path: str, *values: Any) -> Choice:
    return Choice(path=path, values=values)


def _adversarial(low: float, high: float) -> Range:
    return Range(path="method.adversarial", low=low, high=high, log=True)


def _entrant(label: str, recipe: Run, *own: Choice | Range, shares: Mapping[str, float] = {}, **how: Any) -> Entrant:
    return Entrant(
        label=label, method=recipe.method, targets=recipe.targets, space=(RATE, *own),
        shares={f"method.{name}": share for name, share in shares.items()}, **how,
    )  # fmt: skip
