"""May a pod that was given to this node run here? The node's own last word, as upstream's kubelet has it.

The scheduler decides on what the API knew a moment ago, and a pod with `nodeName` never met it; so the node
checks by itself: pods, cpu, memory, ephemeral storage, node affinity, host ports, NoExecute taints. A pod
that is refused has failed for good, with the first reason and its text (upstream: lifecycle/predicate.go and
the scheduler's AdmissionCheck, in this order). Extended resources are nobody's here and are not checked. A
pod that the runtime already holds was let in by an earlier agent and stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from kubelet_py.instruments import Instrument, Number
from kubelet_py.pods import preemption, resources
from kubelet_py.pods.model import Ending, Object, Waiting, containers, init_containers, is_static
from kubelet_py.pods.resize import Table

ANY = "0.0.0.0"
NO_PORTS = "node(s) didn't have free ports for the requested pod ports"
AFFINITY = "NodeAffinity"
NO_AFFINITY = "node(s) didn't match Pod's node affinity/selector"
OS, OS_LABEL = "linux", "kubernetes.io/os"
SHUTDOWN = Waiting("NodeShutdown", "Pod was rejected as the node is shutting down.")
LATER = Waiting("", "other pods are ending to make room, or the manifest's former pod is")
NO_TOLERATION = "node(s) had taints that the pod didn't tolerate"


@dataclass(frozen=True, slots=True)
class Totals:
    """What the pods of this node ask for together: milli-cores and bytes."""

    burstable_cpu: int = 0
    burstable_memory: int = 0
    memory: int = 0


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
    released: bool
    ending: Ending | None
    wanted: Object
    allocated: Table | None
    requests: Requests | None

    @property
    def uid(self) -> str: ...

    @property
    def ends(self) -> bool: ...

    def allocate(self, allocated: Table) -> None: ...


def has_turn(record: Admitted, others: Iterable[Admitted], held: Collection[str]) -> bool:
    """PURE. Of the static pods of one name only one runs at a time, the first that came: a manifest that is
    edited is another pod, which may want the same port as the one before (upstream: allowStaticPodStart).
    `others` in the order in which they came; `held`: those that the runtime has something of."""
    if not is_static(record.pod):
        return True
    before = True
    for other in others:
        if other is record:
            before = False
        elif is_static(other.pod) and _name(other.pod) == _name(record.pod):
            over = other.finished and not other.ends and (other.released or other.requests is None)
            begun = other.requests is not None or other.uid in held
            if not over and (begun or (before and not other.ends)):
                return False
    return True


def _name(pod: Object) -> tuple[str, str]:
    return pod["metadata"]["namespace"], pod["metadata"]["name"]


def requests(pod: Object) -> Requests:
    """What the node counts for this pod."""
    total = resources.pod_requests(pod)
    return Requests(dict(total), frozenset(_ports(pod)), resources.qos_class(pod) == resources.BURSTABLE)


def _ports(pod: Object) -> Iterable[tuple[str, str, int]]:
    for container in [*containers(pod), *init_containers(pod)]:
        for port in container.get("ports") or ():
            if port.get("hostPort"):
                yield port.get("hostIP") or ANY, port.get("protocol", "TCP"), int(port["hostPort"])


def foreign(pod: Object) -> Waiting | None:
    """What is made for another operating system, which no other pod's end would change."""
    if (pod["metadata"].get("labels") or {}).get(OS_LABEL, OS) != OS:
        text = f"Failed to admit pod as the `{OS_LABEL}` label doesn't match node label"
        return Waiting("PodOSSelectorNodeLabelDoesNotMatch", text)
    if ((pod["spec"].get("os") or {}).get("name") or OS) != OS:
        return Waiting("PodOSNotSupported", "Failed to admit pod as the OS field doesn't match node OS")
    return None


def refusal(
    pod: Object, wanted: Requests, taken: Sequence[Requests], node: Object, allocatable: Mapping[str, str]
) -> Waiting | None:
    """None when the pod may run; else reason and message of the first thing that forbids it."""
    lacking = shortages(wanted, taken, allocatable)
    return lacking[0].refusal if lacking else misfit(pod, wanted, taken, node)


def misfit(pod: Object, wanted: Requests, taken: Sequence[Requests], node: Object) -> Waiting | None:
    """What forbids it besides amounts, which no other pod's end would change."""
    if not _affine(pod, node):
        return Waiting(AFFINITY, f"Predicate {AFFINITY} failed: {NO_AFFINITY}")
    if any(_clash(own, used) for own in wanted.host_ports for other in taken for used in other.host_ports):
        return Waiting("NodePorts", f"Predicate NodePorts failed: {NO_PORTS}")
    taints = (node.get("spec") or {}).get("taints") or ()
    if not is_static(pod) and not all(tolerated(pod, t) for t in taints if t.get("effect") == "NoExecute"):
        return Waiting("TaintToleration", f"Predicate TaintToleration failed: {NO_TOLERATION}")
    return None


@dataclass(frozen=True, slots=True)
class Shortage:
    """One resource of which the node has not enough left for a pod."""

    name: str
    requested: int
    used: int
    capacity: int

    @property
    def missing(self) -> int:
        return self.requested + self.used - self.capacity

    @property
    def refusal(self) -> Waiting:
        numbers = f"requested: {self.requested}, used: {self.used}, capacity: {self.capacity}"
        return Waiting(f"OutOf{self.name}", f"Node didn't have enough resource: {self.name}, {numbers}")


def shortages(wanted: Requests, taken: Sequence[Requests], allocatable: Mapping[str, str]) -> list[Shortage]:
    """What the pod would take too much of; the number of pods comes first."""
    most = int(allocatable.get("pods", "110"))
    found = [Shortage("pods", 1, len(taken), most)] if len(taken) + 1 > most else []
    for name in sorted(wanted.amounts, key=_order):
        requested = wanted.amounts[name]
        if resources.is_extended(name) and name not in allocatable:
            continue  # nobody says that there are any here, so nobody counts them
        used = sum(other.amounts.get(name, 0) for other in taken)
        capacity = resources.amount(name, allocatable.get(name, "0"))
        if requested and used + requested > capacity:
            found.append(Shortage(name, requested, used, capacity))
    return found


def room_of(node: Object, allocatable: Mapping[str, str]) -> Mapping[str, str]:
    """What the node has for pods: `allocatable`, and what somebody else told the API that it has."""
    told = (node.get("status") or {}).get("allocatable") or {}
    more = {name: str(text) for name, text in told.items() if resources.is_extended(name)}
    return {**allocatable, **more}


def _order(name: str) -> tuple[int, str]:
    known = resources.COUNTED
    return (known.index(name), "") if name in known else (len(known), name)


def pressed(pod: Object, pressures: Collection[str]) -> Waiting | None:
    """Whether the node's pressures keep the pod out (upstream: the eviction manager's Admit)."""
    if not pressures or resources.is_critical(pod):
        return None
    if set(pressures) == {"MemoryPressure"}:
        if resources.qos_class(pod) != resources.BEST_EFFORT:
            return None
        if tolerated(pod, {"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}):
            return None
    return Waiting("Evicted", f"The node had condition: [{' '.join(sorted(pressures))}]. ")


def _clash(one: tuple[str, str, int], other: tuple[str, str, int]) -> bool:
    return one[1:] == other[1:] and (one[0] == other[0] or ANY in (one[0], other[0]))


def tolerated(pod: Object, taint: Mapping[str, Any]) -> bool:
    """Whether one of the pod's tolerations is for this taint."""
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
        totals: Callable[[Totals], None],
        pressures: Callable[[], Collection[str]] = tuple,
        shutting_down: Callable[[], bool] = lambda: False,
        preempt: Callable[[Admitted], None] | None = None,
        forbids: Callable[[Object], Waiting | None] = lambda pod: None,
        restore: Callable[[Admitted], None] = lambda record: None,
        fresh_node: Callable[[], Object | None] = lambda: None,
    ) -> None:
        """`held`: uids of the pods that the runtime has something of. `totals` gets what all pods ask for
        together, whenever that may have changed. `pressures`: the node's conditions that
        are True. `preempt` ends a pod to make room for a critical one. `forbids`: what has nothing to do
        with other pods. `restore` makes a record's pod what the node has agreed to. `fresh_node` asks the
        API for the Node; None where it cannot be asked."""
        self._records = records
        self._held = held
        self._node = node
        self._allocatable = allocatable
        self._totals = totals
        self._pressures = pressures
        self._shutting_down = shutting_down
        self._preempt = preempt
        self._forbids = forbids
        self._restore = restore
        self._fresh_node = fresh_node
        self._preemptions = Number(
            "kubelet_preemptions",
            "Cumulative number of pod preemptions by preemption resource",
            "preemption_signal",
        )
        self.instruments: tuple[Instrument, ...] = (self._preemptions,)
        self._lock = threading.Lock()

    def admit(self, record: Admitted) -> Waiting | None:
        """Let the pod in (its `requests` are set then), say why not, or LATER: room is being made for it."""
        if record.requests is not None:
            return None
        self._restore(record)
        refused = self._admit(record, self._node())
        if refused is not None and (refused.reason == AFFINITY or "/" in refused.reason):
            # The scheduler may have seen a label, or another number of somebody's own resource, that the
            # watch of the Node has not told us of yet.
            fresh = self._fresh_node()
            refused = self._admit(record, fresh) if fresh is not None else refused
        return refused

    def _admit(self, record: Admitted, node: Object) -> Waiting | None:
        with self._lock:
            wanted, held = requests(record.pod), self._held()
            if record.uid not in held:
                if not has_turn(record, self._records(), held):
                    return LATER
                refused = self._refusal(record, wanted, self._taken(record, held), node)
                if refused is not None:
                    return refused
            record.requests = wanted
            if wanted.amounts:
                self._tell()
        return None

    def _taken(self, record: Admitted, held: set[str]) -> list[Admitted]:
        """The pods that take something of the node now, those that are ending too."""
        taken = []
        for other in self._records():
            if other is record or other.released or (other.requests is None and other.finished):
                continue
            if other.requests is None and other.uid in held:
                self._restore(other)
                other.requests = requests(other.pod)
            if other.requests is not None:
                taken.append(other)
        return taken

    def _refusal(
        self, record: Admitted, wanted: Requests, taken: Sequence[Admitted], node: Object
    ) -> Waiting | None:
        pod, room = record.pod, room_of(node, self._allocatable)
        refused = foreign(pod) or pressed(pod, self._pressures()) or self._forbids(pod)
        if refused is not None:
            return refused
        if self._shutting_down():
            return SHUTDOWN
        refused = refusal(pod, wanted, _of(taken), node, room)
        if refused is None or self._preempt is None or not resources.is_critical(pod):
            return refused
        staying = [other for other in taken if other.ending is None and not other.ends]
        if refusal(pod, wanted, _of(staying), node, room) is None:
            return LATER
        lacking = {s.name: s.missing for s in shortages(wanted, _of(staying), room)}
        if not lacking or misfit(pod, wanted, _of(staying), node) is not None:
            return refused
        try:
            chosen = preemption.victims(pod, [(o.uid, o.pod, o.requests) for o in staying], lacking)
        except preemption.NoVictims as error:
            text = f"Unexpected error while attempting to recover from admission failure: {error}"
            return Waiting("UnexpectedAdmissionError", text)
        for other in staying:
            if other.uid in chosen:
                self._preempt(other)
                self._preemptions.add(next(iter(lacking)))
        return LATER

    def resized(self, record: Admitted, pod: Object) -> Shortage | None:
        """Have the pod take what its new spec asks for (`record.requests` follows), or say what lacks."""
        with self._lock:
            wanted = requests(pod)
            room = room_of(self._node(), self._allocatable)
            lacking = shortages(wanted, _of(self._taken(record, self._held())), room)
            before = record.requests.amounts if record.requests is not None else {}
            # What it has already it may keep, however full the node is.
            lacking = [s for s in lacking if wanted.amounts.get(s.name, 0) > before.get(s.name, 0)]
            if lacking:
                return lacking[0]
            record.requests = wanted
            if wanted.amounts:
                self._tell()
        return None

    def released(self, record: Admitted) -> None:
        """The pod takes nothing any more."""
        record.released = True
        if record.requests is not None and record.requests.amounts:
            with self._lock:
                self._tell()

    def _tell(self) -> None:
        known = [r.requests for r in self._records() if not r.released and r.requests is not None]
        burstable = [r.amounts for r in known if r.burstable]
        self._totals(
            Totals(
                sum(amounts.get("cpu", 0) for amounts in burstable),
                sum(amounts.get("memory", 0) for amounts in burstable),
                sum(r.amounts.get("memory", 0) for r in known),
            )
        )


def _of(records: Sequence[Admitted]) -> list[Requests]:
    return [record.requests for record in records if record.requests is not None]
