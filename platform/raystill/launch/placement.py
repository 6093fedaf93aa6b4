"""Where the parts of a run find room on a Ray cluster, by resources and labels of its nodes."""

import shlex
from collections.abc import Mapping
from typing import Any

from raystill.config.errors import UserError
from raystill.data.stream import READ_CPUS, nodes
from raystill.launch.settings import Cluster, Share

ROUNDING = 1e-6  # tolerance in Ray's resources, which are counted in ten thousandths


def options_of(share: Share) -> dict[str, Any]:
    """The options with which Ray starts a task or actor with this share of a node."""
    options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus}
    if share.resources:
        options["resources"] = dict(share.resources)
    if share.labels:
        options["label_selector"] = dict(share.labels)
    return options


def threads_of(share: Share) -> int:
    """The number of torch threads of a process with this share of a node."""
    return max(1, round(share.cpus))


def machines() -> set[str]:
    """Addresses of the connected cluster's machines; several nodes may run on one."""
    return {str(node["NodeManagerAddress"]) for node in nodes({})}


def room(share: Share) -> int:
    """How many processes of a share the cluster holds at once where nothing else runs."""
    return sum(_held(node, share) for node in nodes(share.labels))


def check_resources(cluster: Cluster) -> None:
    """Raise UserError, saying what is missing, where the cluster cannot hold the run's workers, actors or readers."""
    if cluster.grows:
        return
    reading = Share(cpus=READ_CPUS, labels=cluster.reader_labels)
    beside = 0.0 if cluster.reader_labels else READ_CPUS  # readers share the workers' nodes
    worker = Share(
        cpus=cluster.worker.cpus + beside,
        gpus=cluster.worker.gpus,
        resources=cluster.worker.resources,
        labels=cluster.worker.labels,
    )
    for count, share, kind, asked, path, labels in (
        (cluster.workers, worker, "training workers", cluster.worker, "cluster.worker", "cluster.worker.labels"),
        (cluster.actors, cluster.actor, "actors", cluster.actor, "cluster.actor", "cluster.actor.labels"),
        (1, reading, "reader", reading, "", "cluster.reader_labels"),
    ):
        found = room(share)
        if found < count:
            less = f"{path}s={found}" if found else f"{labels}={{}}" if share.labels else f"{path}.cpus=0.5"
            raise UserError(
                f"the run needs {count} {kind} of {asked} each, and the cluster holds {found} of them:\n"
                + "\n".join(f"  {_shown(node)}" for node in nodes({}))
                + f"\nAsk for less, such as --set {shlex.quote(less)}; "
                + "where nodes are added on demand: --set cluster.grows=true"
            )


def _held(node: Mapping[str, Any], share: Share) -> int:
    """How many processes of a share a node holds."""
    has = node["Resources"]
    fits = [int((has.get(name, 0.0) + ROUNDING) / amount) for name, amount in share.amounts.items()]
    return min(fits, default=1)


def _shown(node: Mapping[str, Any]) -> str:
    """A node as a line of text, without the resources and labels that Ray itself notes there."""
    own = {n: v for n, v in node["Resources"].items() if not n.startswith(("node:", "object_store", "memory", "accel"))}
    labels = {n: v for n, v in node.get("Labels", {}).items() if not n.startswith("ray.io/")}
    parts = [f"{v:g} {n}" for n, v in sorted(own.items())] + [f"{n}={v}" for n, v in sorted(labels.items())]
    return f"{node['NodeManagerAddress']}: {', '.join(parts) or 'nothing'}"
