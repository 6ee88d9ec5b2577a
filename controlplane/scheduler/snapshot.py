"""The cluster as one decision sees it, and the decision. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from controlplane.claims import claim_names
from controlplane.scheduler.filters import NodeView, Requests, explain, node_view, why_not
from controlplane.scheduler.pod_affinity import NO_RULES, Labels, Namespaces, Neighbours, Placed, rules_of
from controlplane.scheduler.scores import best
from controlplane.scheduler.topology_spread import Spread
from controlplane.scheduler.volumes import Choice, Storage, before_nodes, held, on_node

Object = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Nodes by name, the pods on them, and what claims need (empty for a pod without claims)."""

    nodes: Mapping[str, Object]
    placed: Sequence[Placed]
    namespaces: Namespaces
    storage: Storage

    def labels(self) -> dict[str, Labels]:
        return {name: node["metadata"].get("labels") or {} for name, node in self.nodes.items()}

    def views(self, placed: Sequence[Placed]) -> list[NodeView]:
        by_node: dict[str, list[Requests]] = {}
        for pod in placed:
            by_node.setdefault(pod.node, []).append(pod.requests)
        return [node_view(node, by_node.get(name, ())) for name, node in self.nodes.items()]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The node and what to bind first; or, without a node, upstream's explanation and each node's reasons."""

    chosen: NodeView | None
    choices: Sequence[Choice] = ()
    message: str = ""
    refused: Mapping[str, Sequence[str]] = field(default_factory=dict)


def decide(pod: Object, requests: Requests, owner: str, snapshot: Snapshot) -> Verdict:
    """The best node that fits."""
    if claim_names(pod) and (problem := before_nodes(pod, snapshot.storage)):
        return Verdict(None, message=f"0/{len(snapshot.nodes)} nodes are available: {problem}.")
    views = snapshot.views(snapshot.placed)
    spread = Spread(pod, snapshot.placed, views)
    neighbours = Neighbours(pod, snapshot.placed, snapshot.labels(), snapshot.namespaces)
    refused: dict[str, list[str]] = {}
    choices: dict[str, list[Choice]] = {}
    fitting = []
    alone = held(pod, snapshot.storage, snapshot.placed)
    for view in views:
        reasons = why_not(pod, requests, view) or alone
        if not reasons:
            reasons, choices[view.name] = on_node(pod, view.node, snapshot.storage)
        reasons = reasons or spread.why_not(view.name) or neighbours.why_not(view.name)
        if reasons:
            refused[view.name] = reasons
        else:
            fitting.append(view)
    if not fitting:
        return Verdict(None, message=explain(len(views), [*refused.values()]), refused=refused)
    names = [view.name for view in fitting]
    crowding = spread.crowding(names)
    if not pod["spec"].get("topologySpreadConstraints"):
        siblings = Counter(other.node for other in snapshot.placed if owner and other.owner == owner)
        crowding = [float(siblings[name]) for name in names]
    found = best(pod, requests, fitting, crowding, neighbours.points(names))
    return Verdict(found, choices[found.name])


def obstacles(
    pod: Object, requests: Requests, snapshot: Snapshot, node: str, here: Sequence[Placed]
) -> Sequence[str]:
    """Why the pod does not fit on that node if these are its pods and all others stay; empty when it does.

    Preemption asks for each pod of each node: what all nodes have is only looked at where it matters.
    """
    view = node_view(snapshot.nodes[node], [other.requests for other in here])
    if reasons := why_not(pod, requests, view):
        return reasons
    spread = bool(pod["spec"].get("topologySpreadConstraints"))
    ruled = rules_of(pod) is not NO_RULES or any(o.rules is not NO_RULES for o in snapshot.placed)
    if not spread and not ruled and not claim_names(pod):
        return []
    placed = [*(other for other in snapshot.placed if other.node != node), *here]
    return (
        held(pod, snapshot.storage, placed)
        or on_node(pod, view.node, snapshot.storage)[0]
        or (Spread(pod, placed, snapshot.views(placed)).why_not(node) if spread else [])
        or Neighbours(pod, placed, snapshot.labels(), snapshot.namespaces).why_not(node)
    )
