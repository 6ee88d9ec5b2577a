"""Pods that are to be spread evenly over domains (topologySpreadConstraints). Pure.

A domain has as many pods as the constraint's selector finds on its nodes. With the pod on a node, the node's
domain may have at most maxSkew more than the emptiest one. Source: upstream's plugins/podtopologyspread.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.scheduler import filters
from controlplane.scheduler.filters import NodeView, Requests
from controlplane.scheduler.pod_affinity import Labels, Placed, with_label_keys
from kubeclient.selectors import LabelSelector

Object = dict[str, Any]
NOTHING = Requests({}, frozenset())
MISMATCH = "node(s) didn't match pod topology spread constraints"


@dataclass(frozen=True, slots=True)
class Constraint:
    key: str
    skew: int
    hard: bool
    selector: LabelSelector | None
    least_domains: int
    honour_affinity: bool
    honour_taints: bool


def constraints_of(pod: Object) -> tuple[Constraint, ...]:
    """The pod's constraints, hard (DoNotSchedule) and soft (ScheduleAnyway)."""
    labels = pod["metadata"].get("labels") or {}
    return tuple(
        Constraint(
            item["topologyKey"],
            int(item["maxSkew"]),
            item.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule",
            with_label_keys(item, labels),
            int(item.get("minDomains") or 1),
            item.get("nodeAffinityPolicy", "Honor") == "Honor",
            item.get("nodeTaintsPolicy", "Ignore") == "Honor",
        )
        for item in pod["spec"].get("topologySpreadConstraints") or ()
    )


class Spread:
    """How full each domain is, as one pod that is to be placed sees it."""

    def __init__(self, pod: Object, placed: Sequence[Placed], views: Sequence[NodeView]) -> None:
        self._constraints = constraints_of(pod)
        namespace = pod["metadata"].get("namespace", "default")
        self._labels = pod["metadata"].get("labels") or {}
        here = [p for p in placed if p.namespace == namespace and not p.ending]
        nodes = {view.name: view.node["metadata"].get("labels") or {} for view in views}
        self._counts = [
            _count(constraint, self._eligible(pod, constraint, views), here, nodes)
            for constraint in self._constraints
        ]
        self._nodes = nodes

    def _eligible(self, pod: Object, constraint: Constraint, views: Sequence[NodeView]) -> set[str]:
        """Nodes whose domains count: with all keys, and where the pod could run at all."""
        keys = {c.key for c in self._constraints if c.hard == constraint.hard}
        return {
            view.name
            for view in views
            if keys <= set(view.node["metadata"].get("labels") or {})
            and not (constraint.honour_affinity and filters.node_affinity(pod, NOTHING, view))
            and not (constraint.honour_taints and filters.taint_toleration(pod, NOTHING, view))
        }

    def why_not(self, node: str) -> list[str]:
        """Upstream's sentence if the node breaks a hard constraint."""
        labels = self._nodes[node]
        for constraint, counts in zip(self._constraints, self._counts, strict=True):
            if not constraint.hard:
                continue
            if constraint.key not in labels:
                return [f"{MISMATCH} (missing required label)"]
            if not counts:
                continue
            least = min(counts.values()) if len(counts) >= constraint.least_domains else 0
            own = int(constraint.selector is not None and constraint.selector.matches(self._labels))
            if counts.get(labels[constraint.key], 0) + own - least > constraint.skew:
                return [MISMATCH]
        return []

    def crowding(self, nodes: Sequence[str]) -> list[float]:
        """How full the nodes' domains are by the soft constraints; less is better."""
        found = []
        for node in nodes:
            labels = self._nodes[node]
            found.append(
                sum(
                    float(counts.get(labels.get(constraint.key, ""), 0)) / max(1, constraint.skew)
                    for constraint, counts in zip(self._constraints, self._counts, strict=True)
                    if not constraint.hard
                )
            )
        return found


def _count(
    constraint: Constraint, eligible: set[str], placed: Sequence[Placed], nodes: Mapping[str, Labels]
) -> Counter[str]:
    """Pods by the value of the key; a domain without a pod counts as 0."""
    counts: Counter[str] = Counter({nodes[name][constraint.key]: 0 for name in eligible})
    selector = constraint.selector
    for pod in placed:
        if pod.node in eligible and selector is not None and selector.matches(pod.labels):
            counts[nodes[pod.node][constraint.key]] += 1
    return counts
