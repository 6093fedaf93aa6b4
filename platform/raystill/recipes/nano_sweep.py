"""A sweep over RayFlow's sigma, loss and law of times, small enough for two cores."""

from dataclasses import replace

from raystill.launch.settings import Cluster, Share
from raystill.recipes import nano
from raystill.search.settings import Search
from raystill.search.space import Choice, Range, Space

LEARNED = ("GridTimes", "SteinTimes", "SecondMomentTimes")


def space() -> Space:
    """The search space: sigma, the loss, and the Time Sampler's kind and hyperparameters."""
    learned, times = {"method.times": LEARNED}, "method.times"
    return (
        Range(path="method.path.sigma", low=0.0, high=0.5),
        Choice(path="method.objective.target", values=("data", "velocity")),
        Choice(path="method.objective.distance", values=("squared", "pseudo_huber")),
        Choice(path=times, values=("SamplingTimes", "UniformTimes", *LEARNED)),
        Choice(path=f"{times}.base", values=("SamplingTimes", "UniformTimes"), when=learned),
        Range(path=f"{times}.delta", low=0.05, high=0.5, log=True, when=learned),
        Range(path=f"{times}.learning_rate", low=0.01, high=0.1, log=True, when=learned),
        Range(path=f"{times}.bandwidth", low=0.02, high=0.3, log=True, when={times: ("SteinTimes",)}),
        Range(path=f"{times}.components", low=1, high=6, when={times: ("SteinTimes",)}),
    )


def run() -> Search:
    """A sweep of sixteen trials of 120 steps at most, without captions, where more is left to learn."""
    base = nano.open_ended()
    training = replace(base.training, steps=120, lanes=1, lane_size=32, checkpoint_every=60, picture_every=0)
    return Search(
        name="nano-sweep",
        base=replace(
            base,
            name="nano-sweep",
            training=training,
            evaluation=replace(base.evaluation, shards=2, pictures=128),
            cluster=Cluster(workers=1, worker=Share(cpus=0.95)),  # a little is left for readers
        ),
        space=space(),
        trials=16,
        rungs=(30, 60),
    )
