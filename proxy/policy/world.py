"""What NetworkPolicies depend on, as small frozen values: policies, pods and namespaces, from watch events.

Only what matters to a decision is kept, so that a status update that changes none of it causes no work.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kubeclient.addresses import read_ip
from kubeclient.selectors import LabelSelector

Object = Mapping[str, Any]
Key = tuple[str, str]
Labels = tuple[tuple[str, str], ...]
INGRESS, EGRESS = "Ingress", "Egress"


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod that can send and receive; `ports` are its containers' named ports: (name, protocol, number)."""

    namespace: str
    name: str
    uid: str
    node: str
    labels: Labels
    addresses: tuple[str, ...]
    ports: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True)
class Block:
    cidr: str
    excepted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """Pods by selectors, as the policy wrote them; without `pods` and `namespaces` an address block."""

    pods: LabelSelector | None = None
    namespaces: LabelSelector | None = None
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Port:
    """`name` or the range `low` to `high`; neither (0) means all ports of the protocol."""

    protocol: str  # "tcp", "udp", "sctp"
    low: int = 0
    high: int = 0
    name: str = ""


@dataclass(frozen=True, slots=True)
class PolicyRule:
    """Empty `peers`: anybody. Empty `ports`: anything."""

    peers: tuple[Peer, ...]
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    namespace: str
    name: str
    pods: LabelSelector
    kinds: tuple[str, ...]
    ingress: tuple[PolicyRule, ...]
    egress: tuple[PolicyRule, ...]


@dataclass(frozen=True, slots=True)
class View:
    """Everything at one moment. `ranges` are this node's podCIDRs, `addresses` its own."""

    policies: tuple[Policy, ...] = ()
    pods: tuple[Pod, ...] = ()
    namespaces: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ranges: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()


class World:
    """Collects events from any thread; `changed` is set when the view differs from before."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._policies: dict[Key, tuple[Any, Policy]] = {}
        self._pods: dict[Key, Pod] = {}
        self._namespaces: dict[str, dict[str, str]] = {}
        self._ranges: tuple[str, ...] = ()
        self._addresses: tuple[str, ...] = ()
        self.changed = threading.Event()

    @property
    def any_policy(self) -> bool:
        with self._lock:
            return bool(self._policies)

    def policy_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        key, spec = _key(new), new.get("spec") or {}
        with self._lock:
            before = self._policies.pop(key, None)
            if kind == "DELETED":
                same = before is None
            else:
                same = before is not None and before[0] == spec
                self._policies[key] = before if same and before else (spec, read_policy(new))
        if not same:
            self.changed.set()

    def pod_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        key = _key(new)
        pod = None if kind == "DELETED" else read_pod(new)
        with self._lock:
            before = self._pods.pop(key, None)
            if pod is not None:
                self._pods[key] = pod
        if pod != before:
            self.changed.set()

    def namespace_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        name, labels = new["metadata"]["name"], dict(new["metadata"].get("labels") or {})
        with self._lock:
            before = self._namespaces.pop(name, None)
            if kind != "DELETED":
                self._namespaces[name] = labels
        if before != labels or kind == "DELETED":
            self.changed.set()

    def forget_pods(self) -> None:
        """Pods and namespaces are not watched any more: what is known of them is of no worth."""
        with self._lock:
            self._pods, self._namespaces = {}, {}

    def node_event(self, kind: str, new: Object, old: Object | None = None) -> None:
        """This node's own: which range its pods have, and which addresses it has itself."""
        spec = new.get("spec") or {}
        ranges = tuple(spec.get("podCIDRs") or filter(None, [spec.get("podCIDR")]))
        announced = (new.get("status") or {}).get("addresses") or ()
        addresses = tuple(e["address"] for e in announced if e.get("type") == "InternalIP")
        with self._lock:
            same = (ranges, addresses) == (self._ranges, self._addresses)
            self._ranges, self._addresses = ranges, addresses
        if not same:
            self.changed.set()

    def view(self) -> View:
        with self._lock:
            policies = tuple(policy for _key, (_spec, policy) in sorted(self._policies.items()))
            pods = tuple(pod for _key, pod in sorted(self._pods.items()))
            return View(policies, pods, dict(self._namespaces), self._ranges, self._addresses)


def read_pod(body: Object) -> Pod | None:
    """PURE: None for pods on the host's network, without an address, or that have ended: their address may
    be another's by now.
    """
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    if spec.get("hostNetwork") or status.get("phase") in ("Succeeded", "Failed"):
        return None
    texts = [entry["ip"] for entry in status.get("podIPs") or ()] or [status.get("podIP")]
    addresses = tuple(str(found) for text in texts if text and (found := read_ip(text)))
    if not addresses:
        return None
    containers = [*(spec.get("initContainers") or ()), *(spec.get("containers") or ())]
    ports = [port for container in containers for port in container.get("ports") or ()]
    return Pod(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        node=spec.get("nodeName") or "",
        labels=tuple(sorted((meta.get("labels") or {}).items())),
        addresses=addresses,
        ports=tuple(
            (port["name"], (port.get("protocol") or "TCP").lower(), int(port["containerPort"]))
            for port in ports
            if port.get("name")
        ),
    )


def read_policy(body: Object) -> Policy:
    """PURE. Without policyTypes: Ingress, and Egress where there are egress rules."""
    meta, spec = body["metadata"], body.get("spec") or {}
    default = [INGRESS, EGRESS] if spec.get("egress") else [INGRESS]
    return Policy(
        namespace=meta["namespace"],
        name=meta["name"],
        pods=LabelSelector.from_object(spec.get("podSelector")),
        kinds=tuple(spec.get("policyTypes") or default),
        ingress=tuple(_rule(rule, "from") for rule in spec.get("ingress") or ()),
        egress=tuple(_rule(rule, "to") for rule in spec.get("egress") or ()),
    )


def _rule(rule: Mapping[str, Any], side: str) -> PolicyRule:
    return PolicyRule(
        peers=tuple(_peer(peer) for peer in rule.get(side) or ()),
        ports=tuple(_port(port) for port in rule.get("ports") or ()),
    )


def _peer(peer: Mapping[str, Any]) -> Peer:
    block = peer.get("ipBlock")
    if block:
        return Peer(block=Block(block["cidr"], tuple(block.get("except") or ())))
    pods, namespaces = peer.get("podSelector"), peer.get("namespaceSelector")
    return Peer(
        pods=None if pods is None else LabelSelector.from_object(pods),
        namespaces=None if namespaces is None else LabelSelector.from_object(namespaces),
    )


def _port(port: Mapping[str, Any]) -> Port:
    protocol, number = (port.get("protocol") or "TCP").lower(), port.get("port")
    if number is None:
        return Port(protocol)
    if isinstance(number, str):
        return Port(protocol, name=number)
    return Port(protocol, int(number), int(port.get("endPort") or number))


def _key(body: Object) -> Key:
    return body["metadata"].get("namespace") or "", body["metadata"]["name"]
