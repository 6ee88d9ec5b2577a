"""Which of the nodes that fit is best. Pure: points from 0 to 100 per rule, weighted and added.

Rules and weights follow upstream's defaults:
LeastAllocated and BalancedAllocation (1 each), TaintToleration (3), preferred node affinity (2), preferences
between pods (2), and spreading: by the pod's own soft constraints, or pods of one owner over nodes (2, in
place of PodTopologySpread's default constraints).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from controlplane.scheduler.filters import UNSTATED, NodeView, Requests, matches_term, tolerated

Object = dict[str, Any]

HIGHEST = 100.0


def _fractions(requests: Requests, view: NodeView) -> list[float]:
    """Share of cpu and memory that would be taken with the pod on the node, each 0 to 1."""
    shares = []
    for resource, unstated in UNSTATED.items():
        capacity = view.allocatable.get(resource, 0)
        taken = view.weighed[resource] + requests.amounts.get(resource, unstated)
        shares.append(min(1.0, taken / capacity) if capacity else 1.0)
    return shares


def least_allocated(requests: Requests, view: NodeView) -> float:
    shares = _fractions(requests, view)
    return HIGHEST * (1 - sum(shares) / len(shares))


def balanced_allocation(requests: Requests, view: NodeView) -> float:
    low, high = sorted(_fractions(requests, view))
    return HIGHEST * (1 - (high - low) / 2)


def taint_toleration(pod: Object, view: NodeView) -> int:
    """Number of PreferNoSchedule taints that the pod does not tolerate; fewer is better."""
    tolerations = pod["spec"].get("tolerations")
    taints = view.node["spec"].get("taints") or []
    return sum(1 for t in taints if t["effect"] == "PreferNoSchedule" and not tolerated(t, tolerations))


def preferred_affinity(pod: Object, view: NodeView) -> int:
    """Sum of the weights of preferred terms that the node matches; more is better."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    labels = view.node["metadata"].get("labels") or {}
    return sum(
        int(term["weight"])
        for term in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or []
        if matches_term(term["preference"], labels, view.name)
    )


def _normalised(values: Sequence[float], *, reverse: bool = False) -> list[float]:
    """Scaled so that the best has 100; all equal where there is nothing to tell them apart."""
    top = max(values)
    if not top:
        return [HIGHEST if reverse else 0.0] * len(values)
    return [HIGHEST * (1 - v / top) if reverse else HIGHEST * v / top for v in values]


def _stretched(values: Sequence[float]) -> list[float]:
    """Scaled so that the worst has 0 and the best 100, as values below 0 need it."""
    low, high = min(values), max(values)
    return [HIGHEST * (v - low) / (high - low) if high > low else 0.0 for v in values]


def best(
    pod: Object,
    requests: Requests,
    views: Sequence[NodeView],
    crowding: Sequence[float],
    liked: Sequence[float],
) -> NodeView:
    """The highest-scoring node. Ties go by name.

    `crowding` says of each node how many are there that the pod should be spread from, `liked` how much it
    wants to be near what is there.
    """
    if len(views) == 1:
        return views[0]
    taints = _normalised([taint_toleration(pod, view) for view in views], reverse=True)
    affinity = _normalised([preferred_affinity(pod, view) for view in views])
    spread, company = _normalised(crowding, reverse=True), _stretched(liked)
    totals = [
        least_allocated(requests, view)
        + balanced_allocation(requests, view)
        + 3 * taints[i]
        + 2 * affinity[i]
        + 2 * spread[i]
        + 2 * company[i]
        for i, view in enumerate(views)
    ]
    order = sorted(range(len(views)), key=lambda i: (-totals[i], views[i].name))
    return views[order[0]]
