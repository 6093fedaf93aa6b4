"""Settings of what a run asks of a Ray cluster."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from raystill.config.checks import at_least
from raystill.config.errors import UserError
from raystill.config.fingerprint import Knob


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The resources that one process takes of a node, and the labels that the node must have."""

    cpus: float = 1.0  # logical CPUs
    gpus: float = 0.0
    resources: Mapping[str, float] = field(default_factory=dict)  # custom resources, as in `ray start --resources`
    labels: Mapping[str, str] = field(default_factory=dict)  # labels of the node, as in `ray start --labels`

    @property
    def amounts(self) -> dict[str, float]:
        """The amount of every resource that the process takes, by Ray's names."""
        every = {"CPU": self.cpus, "GPU": self.gpus, **self.resources}
        return {name: amount for name, amount in every.items() if amount > 0}

    def __str__(self) -> str:
        """Return the amounts and labels as text for messages."""
        amounts = [f"{amount:g} {name}" for name, amount in self.amounts.items()]
        return ", ".join([*amounts, *(f"{name}={value}" for name, value in self.labels.items())]) or "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Settings of what a run asks of a Ray cluster."""

    workers: Knob[int] = 1  # training workers, one rank each, that share out a step's lanes
    # share of a node for each training worker; readers need a little beside it
    worker: Knob[Share] = field(default_factory=lambda: Share(cpus=0.8))
    actors: Knob[int] = 2  # actors of the pool that computes derived shards: the teacher's and the encoders' work
    actor: Knob[Share] = field(default_factory=Share)  # share of a node for each actor
    # labels of the nodes that read for the workers
    reader_labels: Knob[Mapping[str, str]] = field(default_factory=dict)
    grows: Knob[bool] = False  # whether nodes are added on demand: missing resources are waited for, not refused
    zero_stage: Knob[int] = 2  # stage of DeepSpeed's ZeRO, 0 to 3
    max_failures: Knob[int] = 1  # restarts of the worker group from the last checkpoint


def check_cluster(cluster: Cluster) -> None:
    """Refuse, with UserError, a cluster that trains nothing or an unknown stage of ZeRO."""
    if cluster.zero_stage not in (0, 1, 2, 3):
        raise UserError(f"cluster.zero_stage is {cluster.zero_stage}; ZeRO has stages 0, 1, 2 and 3")
    at_least(1, "cluster.workers", cluster.workers)
    at_least(1, "cluster.actors", cluster.actors)
