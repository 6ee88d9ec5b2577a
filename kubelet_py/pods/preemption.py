"""PURE: which pods have to go so that a critical one can run here.

A critical pod (static, or of a system-critical priority) that does not fit makes the node end others, as few
and as cheap ones as possible: BestEffort before Burstable before Guaranteed, and of one class the pod whose
end comes closest to what is missing. Source: upstream's pkg/kubelet/preemption/preemption.go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from kubelet_py.errors import NodeError
from kubelet_py.pods import resources
from kubelet_py.pods.model import Ending, Object

MESSAGE = "Preempted in order to admit critical pod"
PREEMPTED = Ending(
    "Preempting",
    MESSAGE,
    disruption="Pod was preempted by Kubelet to accommodate a critical pod.",
)


class NoVictims(NodeError):
    """Even without every pod that may go there would not be enough."""


class Taken(Protocol):
    @property
    def amounts(self) -> Mapping[str, int]: ...


Pod = tuple[str, Object, Taken | None]
"""(uid, pod, what it takes)"""


def preemptable(preemptor: Object, other: Object) -> bool:
    """May `preemptor` push `other` out?"""
    if not resources.is_critical(preemptor):
        return False
    if not resources.is_critical(other):
        return True
    return resources.priority(preemptor) > resources.priority(other)


def victims(preemptor: Object, pods: Sequence[Pod], missing: Mapping[str, int]) -> set[str]:
    """Uids of the pods to end, so that `missing` (milli-cores, bytes, "pods") becomes free."""
    classes: dict[str, list[Pod]] = {
        resources.BEST_EFFORT: [], resources.BURSTABLE: [], resources.GUARANTEED: []
    }  # fmt: skip
    for pod in pods:
        if preemptable(preemptor, pod[1]):
            classes[resources.qos_class(pod[1])].append(pod)
    best, burstable, guaranteed = classes.values()
    lacking = _less(missing, best + burstable + guaranteed)
    if lacking:
        wanted = ", ".join(f"(res: {name}, q: {amount})" for name, amount in lacking.items())
        raise NoVictims(
            "preemption: error finding a set of pods to preempt: "
            f"no set of running pods found to reclaim resources: [{wanted}, ]"
        )
    # Of the costly classes only what the cheaper ones together cannot give.
    last = _closest(guaranteed, _less(missing, best + burstable))
    middle = _closest(burstable, _less(missing, best + last))
    first = _closest(best, _less(missing, middle + last))
    return {pod[0] for pod in first + middle + last}


def _amount(pod: Pod, name: str) -> int:
    if name == "pods":
        return 1
    return pod[2].amounts.get(name, 0) if pod[2] is not None else 0


def _less(missing: Mapping[str, int], pods: Sequence[Pod]) -> dict[str, int]:
    """What is still missing when these pods are gone."""
    left = {name: amount - sum(_amount(pod, name) for pod in pods) for name, amount in missing.items()}
    return {name: amount for name, amount in left.items() if amount > 0}


def _closest(pods: Sequence[Pod], missing: Mapping[str, int]) -> list[Pod]:
    """Pod after pod, each the one that leaves the least missing; of two such the smaller."""
    left, rest, chosen = dict(missing), list(pods), []
    while left:
        best = min(rest, key=lambda pod: (_distance(pod, left), _amount(pod, "memory"), _amount(pod, "cpu")))
        rest.remove(best)
        chosen.append(best)
        left = _less(left, [best])
    return chosen


def _distance(pod: Pod, missing: Mapping[str, int]) -> float:
    """Upstream's measure: the squares of the shares that stay missing, added up."""
    return sum((max(0, amount - _amount(pod, name)) / amount) ** 2 for name, amount in missing.items())
