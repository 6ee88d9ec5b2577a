"""Which nodes a pod fits on, and in upstream's words why it does not fit on the others. Pure.

The names and messages are those of upstream's scheduler plugins (NodeName, NodeUnschedulable,
TaintToleration, NodeAffinity, NodePorts, NodeResourcesFit), because people search for these texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kubeclient import quantity

Object = dict[str, Any]

UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
DEFAULT_PODS = 110
# What a pod that does not say counts as, when nodes are compared (upstream's non-zero requests).
UNSTATED = {"cpu": 100, "memory": 200 * 1024 * 1024}


@dataclass(frozen=True, slots=True)
class Requests:
    """What a pod asks of its node: cpu in milli-cores, all else in whole units (bytes, counts)."""

    amounts: Mapping[str, int]
    host_ports: frozenset[tuple[str, str, int]]

    def __getitem__(self, resource: str) -> int:
        return self.amounts.get(resource, 0)

    def less_than(self, other: Requests) -> bool:
        """Whether these leave more of something than the others did."""
        return any(self[resource] < given for resource, given in other.amounts.items())


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as the scheduler sees it: the object, what it can give, and what is given already.

    `weighed` is what is given of the resources of UNSTATED, pods that ask for nothing counted too: without
    it such pods would all go to one node, as none of them makes it any fuller.
    """

    node: Object
    allocatable: Mapping[str, int]
    requested: Mapping[str, int]
    weighed: Mapping[str, int]
    pods: int
    host_ports: frozenset[tuple[str, str, int]]

    @property
    def name(self) -> str:
        return str(self.node["metadata"]["name"])


def amount(resource: str, text: str | int | float) -> int:
    """A quantity as an integer: milli for cpu, rounded-up whole units for everything else."""
    return quantity.milli(str(text)) if resource == "cpu" else quantity.value(str(text))


def pod_requests(pod: Object) -> Requests:
    """What the pod takes of its node; a limit stands in for a request that is not stated.

    While a resize waits or is under way the pod takes the larger of what it has and what it wants; what the
    node has called infeasible is not counted (upstream: UseStatusResources).
    """
    amounts = _pod_total(_with_status(pod), ("limits", "requests"))
    return Requests(amounts, frozenset(_host_ports(pod["spec"])))


def _with_status(pod: Object) -> Object:
    """The pod's spec, with the requests that its node has agreed to where they are others."""
    spec: Object = pod["spec"]
    status = pod.get("status") or {}
    held = {
        entry["name"]: entry["allocatedResources"]
        for key in ("containerStatuses", "initContainerStatuses")
        for entry in status.get(key) or ()
        if entry.get("allocatedResources")
    }
    if not held:
        return spec
    refused = any(
        c["type"] == "PodResizePending" and c.get("reason") == "Infeasible"
        for c in status.get("conditions") or ()
    )
    changed = dict(spec)
    for key in ("containers", "initContainers"):
        if key in spec:
            changed[key] = [_larger(c, held.get(c["name"]) or {}, refused) for c in spec[key]]
    return changed


def _larger(container: Object, held: Mapping[str, str], refused: bool) -> Object:
    resources = container.get("resources") or {}
    wanted = resources.get("requests") or {}
    chosen = {
        name: text if refused or amount(name, text) > amount(name, wanted.get(name, "0")) else wanted[name]
        for name, text in held.items()
    }
    return {**container, "resources": {**resources, "requests": {**wanted, **chosen}}}


def pod_limits(pod: Object) -> dict[str, int]:
    """The same sum over limits."""
    return _pod_total(pod["spec"], ("limits",))


def _pod_total(spec: Object, sides: Sequence[str]) -> dict[str, int]:
    """Sum over containers, or the largest init container, plus sidecars and overhead, per resource.

    Source: upstream's component-helpers `PodRequests`: a restartable init container counts from its start on.
    """
    total: Counter[str] = Counter()
    for container in spec.get("containers", []):
        total.update(_container_amounts(container, sides))
    sidecars: Counter[str] = Counter()
    peak: dict[str, int] = {}
    for container in spec.get("initContainers") or []:
        own = _container_amounts(container, sides)
        if container.get("restartPolicy") == "Always":
            sidecars.update(own)
            own = dict(sidecars)
        else:
            own = {name: own.get(name, 0) + sidecars.get(name, 0) for name in {*own, *sidecars}}
        peak = {name: max(own.get(name, 0), peak.get(name, 0)) for name in {*own, *peak}}
    total.update(sidecars)
    amounts = {name: max(total.get(name, 0), peak.get(name, 0)) for name in {*total, *peak}}
    amounts |= _container_amounts(spec, sides)  # what the pod asks for as a whole takes the sums' place
    for name, text in (spec.get("overhead") or {}).items():
        amounts[name] = amounts.get(name, 0) + amount(name, text)
    return amounts


def _container_amounts(container: Object, sides: Sequence[str]) -> dict[str, int]:
    """The container's amounts; of two sides the later one wins."""
    resources = container.get("resources") or {}
    texts: dict[str, str] = {}
    for side in sides:
        texts |= resources.get(side) or {}
    return {name: amount(name, text) for name, text in texts.items()}


def _host_ports(spec: Object) -> Iterable[tuple[str, str, int]]:
    for container in [*spec.get("containers", []), *(spec.get("initContainers") or [])]:
        for port in container.get("ports") or []:
            if port.get("hostPort"):
                yield port.get("hostIP") or "0.0.0.0", port.get("protocol", "TCP"), int(port["hostPort"])


def node_view(node: Object, pods: Sequence[Requests]) -> NodeView:
    """The node with what `pods` (bound or about to be) take of it."""
    allocatable = (node.get("status") or {}).get("allocatable") or {}
    requested: Counter[str] = Counter()
    weighed = dict.fromkeys(UNSTATED, 0)
    ports: set[tuple[str, str, int]] = set()
    for pod in pods:
        requested.update(pod.amounts)
        for name, unstated in UNSTATED.items():
            weighed[name] += pod.amounts.get(name, unstated)
        ports |= pod.host_ports
    amounts = {name: amount(name, text) for name, text in allocatable.items()}
    return NodeView(node, amounts, requested, weighed, len(pods), frozenset(ports))


def node_name(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    wanted = pod["spec"].get("nodeName")
    return ["node(s) didn't match the requested node name"] if wanted and wanted != view.name else []


def node_unschedulable(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    if not view.node["spec"].get("unschedulable"):
        return []
    taint = {"key": UNSCHEDULABLE_TAINT, "effect": "NoSchedule"}
    return [] if tolerated(taint, pod["spec"].get("tolerations")) else ["node(s) were unschedulable"]


def taint_toleration(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    for taint in view.node["spec"].get("taints") or []:
        # The unschedulable taint has a reason of its own, from node_unschedulable.
        if taint["key"] == UNSCHEDULABLE_TAINT and view.node["spec"].get("unschedulable"):
            continue
        if taint["effect"] in ("NoSchedule", "NoExecute") and not tolerated(
            taint, pod["spec"].get("tolerations")
        ):
            return [f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"]
    return []


def tolerated(taint: Object, tolerations: Sequence[Object] | None) -> bool:
    """Whether any toleration matches the taint (empty key with Exists matches all; empty effect any)."""
    for toleration in tolerations or []:
        if toleration.get("effect") and toleration["effect"] != taint.get("effect"):
            continue
        if toleration.get("key") and toleration["key"] != taint["key"]:
            continue
        operator = toleration.get("operator") or "Equal"
        if operator == "Exists":
            return True
        if toleration.get("key") and toleration.get("value", "") == taint.get("value", ""):
            return True
    return False


def node_affinity(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    labels = view.node["metadata"].get("labels") or {}
    message = ["node(s) didn't match Pod's node affinity/selector"]
    for key, value in (pod["spec"].get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            return message
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is not None and not any(
        matches_term(term, labels, view.name) for term in required.get("nodeSelectorTerms") or []
    ):
        return message
    return []


def matches_term(term: Object, labels: Mapping[str, str], name: str) -> bool:
    """Whether one nodeSelectorTerm matches: all of its expressions and fields; an empty term never does."""
    expressions, fields = term.get("matchExpressions") or [], term.get("matchFields") or []
    if not expressions and not fields:
        return False
    return all(_matches(e, labels) for e in expressions) and all(
        _matches(f, {"metadata.name": name}) for f in fields
    )


def _matches(expression: Object, values: Mapping[str, str]) -> bool:
    key, operator, wanted = expression["key"], expression["operator"], expression.get("values") or []
    present = key in values
    if operator == "In":
        return present and values[key] in wanted
    if operator == "NotIn":
        return not present or values[key] not in wanted
    if operator == "Exists":
        return present
    if operator == "DoesNotExist":
        return not present
    if (
        not present
        or not values[key].lstrip("-").isdigit()
        or not wanted
        or not wanted[0].lstrip("-").isdigit()
    ):
        return False
    number, bound = int(values[key]), int(wanted[0])
    return number > bound if operator == "Gt" else number < bound


def node_ports(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    for address, protocol, port in requests.host_ports:
        for used_address, used_protocol, used_port in view.host_ports:
            overlap = address == used_address or "0.0.0.0" in (address, used_address)
            if overlap and protocol == used_protocol and port == used_port:
                return ["node(s) didn't have free ports for the requested pod ports"]
    return []


def node_resources_fit(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    reasons = []
    if view.pods + 1 > view.allocatable.get("pods", DEFAULT_PODS):
        reasons.append("Too many pods")
    for resource, wanted in sorted(requests.amounts.items()):
        if wanted and wanted > view.allocatable.get(resource, 0) - view.requested.get(resource, 0):
            reasons.append(f"Insufficient {resource}")
    return reasons


Filter = Callable[[Object, Requests, NodeView], list[str]]
FILTERS: tuple[Filter, ...] = (
    node_unschedulable,
    node_name,
    taint_toleration,
    node_affinity,
    node_ports,
    node_resources_fit,
)


def why_not(pod: Object, requests: Requests, view: NodeView) -> list[str]:
    """Reasons of the first filter that refuses the node; empty where the pod fits."""
    for check in FILTERS:
        reasons = check(pod, requests, view)
        if reasons:
            return reasons
    return []


def explain(total: int, reasons: Sequence[Sequence[str]]) -> str:
    """Upstream's FitError text, such as "0/2 nodes are available: 2 Insufficient cpu." """
    if total == 0:
        return "no nodes available to schedule pods"
    counts = Counter(reason for per_node in reasons for reason in per_node)
    listed = ", ".join(sorted(f"{count} {reason}" for reason, count in counts.items()))
    return f"0/{total} nodes are available: {listed}."
