"""May a pod that was given to this node run here? The node's own last word, as upstream's kubelet has it.

The scheduler decides on what the API knew a moment ago, and a pod with `nodeName` never met it; so the node
checks by itself: pods, cpu, memory, ephemeral storage, node affinity, host ports, NoExecute taints. A pod
that is refused has failed for good, with the first reason and its text (upstream: lifecycle/predicate.go and
the scheduler's AdmissionCheck, in this order). Extended resources are nobody's here and are not checked. A
pod that the runtime already holds was let in by an earlier agent and stays.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kubeclient import quantity
from kubelet_py.pods import resources
from kubelet_py.pods.model import (
    Object,
    Waiting,
    containers,
    init_containers,
    is_restartable,
    is_static,
)

CHECKED = ("cpu", "memory", "ephemeral-storage")
ANY = "0.0.0.0"
NO_PORTS = "node(s) didn't have free ports for the requested pod ports"
NO_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
NO_TOLERATION = "node(s) had taints that the pod didn't tolerate"


@dataclass(frozen=True, slots=True)
class Requests:
    """What a pod takes of its node: cpu in milli-cores, the others in bytes."""

    amounts: Mapping[str, int]
    host_ports: frozenset[tuple[str, str, int]]  # (address, protocol, port)
    burstable: bool


class Admitted(Protocol):
    """A pod's record, as far as the gate needs it."""

    pod: Object
    finished: bool
    requests: Requests | None

    @property
    def uid(self) -> str: ...


def requests(pod: Object) -> Requests:
    """The sum of the containers or the largest init container, with the sidecars, plus the overhead."""
    main: Counter[str] = Counter()
    sidecars: Counter[str] = Counter()
    peak: Counter[str] = Counter()
    for container in containers(pod):
        main.update(_own(container))
    for container in init_containers(pod):
        own = _own(container)
        if is_restartable(container):
            sidecars.update(own)
            peak |= sidecars
        else:
            peak |= own + sidecars
    total = (main + sidecars) | peak
    overhead = pod["spec"].get("overhead") or {}
    total.update({name: _amount(name, str(overhead[name])) for name in CHECKED if name in overhead})
    return Requests(dict(total), frozenset(_ports(pod)), resources.qos_class(pod) == resources.BURSTABLE)


def _own(container: Object) -> Counter[str]:
    table = container.get("resources") or {}
    texts = {**(table.get("limits") or {}), **(table.get("requests") or {})}
    return Counter({name: _amount(name, str(texts[name])) for name in CHECKED if name in texts})


def _amount(name: str, text: str) -> int:
    return quantity.milli(text) if name == "cpu" else quantity.value(text)


def _ports(pod: Object) -> Iterable[tuple[str, str, int]]:
    for container in [*containers(pod), *init_containers(pod)]:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield port.get("hostIP") or ANY, port.get("protocol", "TCP"), int(port["hostPort"])


def refusal(
    pod: Object, wanted: Requests, taken: Sequence[Requests], node: Object, allocatable: Mapping[str, str]
) -> Waiting | None:
    """None when the pod may run; else reason and message of the first thing that forbids it."""
    most = int(allocatable.get("pods", "110"))
    if len(taken) + 1 > most:
        return _insufficient("pods", 1, len(taken), most)
    for name in CHECKED:
        amount = wanted.amounts.get(name, 0)
        used = sum(other.amounts.get(name, 0) for other in taken)
        capacity = _amount(name, allocatable.get(name, "0"))
        if amount and used + amount > capacity:
            return _insufficient(name, amount, used, capacity)
    if not _affine(pod, node):
        return Waiting("NodeAffinity", f"Predicate NodeAffinity failed: {NO_AFFINITY}")
    if any(_clash(own, used) for own in wanted.host_ports for other in taken for used in other.host_ports):
        return Waiting("NodePorts", f"Predicate NodePorts failed: {NO_PORTS}")
    taints = (node.get("spec") or {}).get("taints") or ()
    if not is_static(pod) and not all(_tolerated(pod, t) for t in taints if t.get("effect") == "NoExecute"):
        return Waiting("TaintToleration", f"Predicate TaintToleration failed: {NO_TOLERATION}")
    return None


def _insufficient(name: str, amount: int, used: int, capacity: int) -> Waiting:
    numbers = f"requested: {amount}, used: {used}, capacity: {capacity}"
    return Waiting(f"OutOf{name}", f"Node didn't have enough resource: {name}, {numbers}")


def _clash(one: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    return one[1:] == other[1:] and (one[0] == other[0] or ANY in (one[0], other[0]))


def _tolerated(pod: Object, taint: Mapping[str, Any]) -> bool:
    for toleration in pod["spec"].get("tolerations") or ():
        key, effect = toleration.get("key"), toleration.get("effect")
        if (effect and effect != taint.get("effect")) or (key and key != taint["key"]):
            continue
        if toleration.get("operator") == "Exists":
            return True
        if key and (toleration.get("value") or "") == (taint.get("value") or ""):
            return True
    return False


def _affine(pod: Object, node: Object) -> bool:
    """nodeSelector and the required node affinity; preferences are the scheduler's business."""
    metadata = node["metadata"]
    labels = metadata.get("labels") or {}
    selector = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return matches_terms(required.get("nodeSelectorTerms") or (), node)


def matches_terms(terms: Sequence[Mapping[str, Any]], node: Mapping[str, Any]) -> bool:
    """Whether one of the nodeSelectorTerms matches the Node."""
    metadata = node["metadata"]
    labels, name = metadata.get("labels") or {}, {"metadata.name": metadata["name"]}
    for term in terms:
        expressions = [(e, labels) for e in term.get("matchExpressions") or ()]
        expressions += [(f, name) for f in term.get("matchFields") or ()]
        # A term that says nothing matches nothing.
        if expressions and all(_matches(expression, values) for expression, values in expressions):
            return True
    return False


def _matches(expression: Mapping[str, Any], values: Mapping[str, str]) -> bool:
    found, wanted = values.get(expression["key"]), expression.get("values") or []
    match expression["operator"]:
        case "In":
            return found in wanted
        case "NotIn":
            return found not in wanted
        case "Exists":
            return found is not None
        case "DoesNotExist":
            return found is None
    try:
        number, bound = int(found or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return number > bound if expression["operator"] == "Gt" else number < bound


class Gate:
    """Lets pods in one after the other, so that two cannot both take the last place."""

    def __init__(
        self,
        *,
        records: Callable[[], Sequence[Admitted]],
        held: Callable[[], set[str]],
        node: Callable[[], Object],
        allocatable: Mapping[str, str],
        burstable: Callable[[int], None],
    ) -> None:
        """`held`: uids of the pods that the runtime has something of. `burstable` gets the milli-cores that
        all Burstable pods ask for, whenever that may have changed."""
        self._records = records
        self._held = held
        self._node = node
        self._allocatable = allocatable
        self._burstable = burstable
        self._lock = threading.Lock()

    def admit(self, record: Admitted) -> Waiting | None:
        """Let the pod in (its `requests` are set then), or say why not."""
        if record.requests is not None:
            return None
        with self._lock:
            wanted, held = requests(record.pod), self._held()
            if record.uid not in held:
                taken = []
                for other in self._records():
                    if other is record or other.finished:
                        continue
                    if other.requests is None and other.uid in held:
                        other.requests = requests(other.pod)
                    if other.requests is not None:
                        taken.append(other.requests)
                refused = refusal(record.pod, wanted, taken, self._node(), self._allocatable)
                if refused is not None:
                    return refused
            record.requests = wanted
            if wanted.burstable:
                self._tell_burstable()
        return None

    def released(self, record: Admitted) -> None:
        """The pod takes nothing any more."""
        if record.requests is not None and record.requests.burstable:
            with self._lock:
                self._tell_burstable()

    def _tell_burstable(self) -> None:
        known = [r.requests for r in self._records() if not r.finished and r.requests is not None]
        self._burstable(sum(r.amounts.get("cpu", 0) for r in known if r.burstable))
