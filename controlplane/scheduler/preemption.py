"""Which pods of lower priority have to go so that a pod fits. Pure.

On each node where the pod would fit without them all, as many as possible are spared, those of higher
priority first. The node where the least is lost is chosen: fewest broken PodDisruptionBudgets, then the
lowest priorities, the fewest pods, the youngest. Source: upstream's plugins/defaultpreemption.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane.scheduler.pod_affinity import Placed
from kubeclient.selectors import LabelSelector

Object = dict[str, Any]
WhyNot = Callable[[str, Sequence[Placed]], Sequence[str]]
"""Why the pod does not fit on that node if these are its pods and all others stay; empty when it does."""
WhyEmpty = Callable[[str], Sequence[str]]
"""Why the pod does not fit on that node for what the node alone is."""
NO_HELP = "Preemption is not helpful for scheduling"
NO_VICTIMS = "No preemption victims found for incoming pod"

HOPELESS = (
    "node(s) didn't match the requested node name",
    "node(s) were unschedulable",
    "node(s) had untolerated taint",
    "node(s) didn't match Pod's node affinity/selector",
    "node(s) didn't match pod affinity rules",
    "node(s) didn't match pod topology spread constraints (missing required label)",
    "node(s) had volume node affinity conflict",
    "node(s) didn't find available persistent volumes to bind",
)
"""How reasons begin that no pod's end would change."""
TOO_LITTLE = "Insufficient "
"""How the reason of an empty node begins that is too small for the pod."""


@dataclass(frozen=True, slots=True)
class Sacrifice:
    """A node, and the pods that go; `broken` of them against a PodDisruptionBudget."""

    node: str
    victims: tuple[Placed, ...]
    broken: int

    def cost(self) -> tuple[int, int, int, int, float, str]:
        """The smallest is the best choice."""
        priorities = [victim.priority for victim in self.victims]
        highest = max(priorities)
        first = min(victim.started for victim in self.victims if victim.priority == highest)
        # Above zero, so that several of negative priority do not count as less than one.
        total = sum(priority + 2**31 for priority in priorities)
        return self.broken, highest, total, len(priorities), -first, self.node


def waits_for_ends(pod: Object, placed: Sequence[Placed], refused: Mapping[str, Sequence[str]]) -> bool:
    """Whether pods end for it already, on a node that would still have it then."""
    node = (pod.get("status") or {}).get("nominatedNodeName")
    if not node or hopeless(refused.get(node, ())):
        return False
    return any(p.node == node and p.ending and p.priority < priority_of(pod) for p in placed)


def hopeless(reasons: Sequence[str]) -> bool:
    return any(text.startswith(HOPELESS) for text in reasons)


def priority_of(pod: Object) -> int:
    return int(pod["spec"].get("priority") or 0)


def choose(
    priority: int,
    refused: Mapping[str, Sequence[str]],
    placed: Sequence[Placed],
    budgets: Sequence[Object],
    why_not: WhyNot,
) -> Sacrifice | None:
    """The best sacrifice on one of the nodes, given why each refused the pod; None where none makes room."""
    lower, kept = _by_node(priority, placed)
    hopeful = [node for node, reasons in refused.items() if node in lower and not hopeless(reasons)]
    found = (_on_node(node, lower[node], kept[node], budgets, why_not) for node in hopeful)
    return min((each for each in found if each is not None), key=Sacrifice.cost, default=None)


def why_none(
    priority: int,
    refused: Mapping[str, Sequence[str]],
    placed: Sequence[Placed],
    why_not: WhyNot,
    empty: WhyEmpty,
) -> dict[str, Sequence[str]]:
    """What upstream says of each node that makes no room, given why it refused the pod."""
    found: dict[str, Sequence[str]] = {}
    lower, kept = _by_node(priority, placed)
    for node, reasons in refused.items():
        if hopeless(reasons) or any(text.startswith(TOO_LITTLE) for text in empty(node)):
            found[node] = [NO_HELP]
        else:
            found[node] = why_not(node, kept[node]) if node in lower else [NO_VICTIMS]
    return found


def _by_node(
    priority: int, placed: Sequence[Placed]
) -> tuple[Mapping[str, list[Placed]], Mapping[str, list[Placed]]]:
    """(pods of lower priority, all others) by their nodes: once for all, as a cluster has many of both."""
    lower: defaultdict[str, list[Placed]] = defaultdict(list)
    kept: defaultdict[str, list[Placed]] = defaultdict(list)
    for pod in placed:
        (lower if pod.priority < priority else kept)[pod.node].append(pod)
    return lower, kept


def _on_node(
    node: str, lower: Sequence[Placed], others: Sequence[Placed], budgets: Sequence[Object], why_not: WhyNot
) -> Sacrifice | None:
    kept = [*others]
    if why_not(node, kept):
        return None
    breaking, free = _by_budget(lower, budgets)
    victims: list[Placed] = []
    broken = 0
    for pod in [*breaking, *free]:
        if why_not(node, [*kept, pod]):
            victims.append(pod)
            broken += pod in breaking
        else:
            kept.append(pod)
    return Sacrifice(node, tuple(victims), broken) if victims else None


def _by_budget(pods: Sequence[Placed], budgets: Sequence[Object]) -> tuple[list[Placed], list[Placed]]:
    """(pods whose end would break a budget, the others), each by priority, then age."""
    left = {
        budget["metadata"]["uid"]: int((budget.get("status") or {}).get("disruptionsAllowed", 0))
        for budget in budgets
    }
    breaking: list[Placed] = []
    free: list[Placed] = []
    for pod in sorted(pods, key=lambda p: (-p.priority, p.started)):
        uids = [budget["metadata"]["uid"] for budget in budgets if _protects(budget, pod)]
        (breaking if any(left[uid] < 1 for uid in uids) else free).append(pod)
        for uid in uids:
            left[uid] -= 1
    return breaking, free


def _protects(budget: Object, pod: Placed) -> bool:
    selector = (budget.get("spec") or {}).get("selector")
    same = budget["metadata"]["namespace"] == pod.namespace
    return same and selector is not None and LabelSelector.from_object(selector).matches(pod.labels)
