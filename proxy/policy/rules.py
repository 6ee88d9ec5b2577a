"""PURE. A view of policies and pods → who may talk to this node's pods, and whom they may talk to.

A pod that no policy selects for a direction is free in it. One that is selected may do what at least one
rule of one policy allows, and nothing else (networking.k8s.io/v1). Sender and receiver must both allow:
each node decides for its own pods. A pod always reaches itself, and its own node always reaches it
(probes).
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

from kubeclient.selectors import LabelSelector
from proxy.policy.memory import Memory
from proxy.policy.world import EGRESS, INGRESS, Block, Peer, Pod, Policy, PolicyRule, Port, View

Range = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Match:
    """Packets of one protocol to ports `low` to `high` (0: all ports); protocol "" is everything."""

    protocol: str = ""
    low: int = 0
    high: int = 0


@dataclass(frozen=True, slots=True)
class Group:
    """Addresses under one name; `ranges` (address blocks) are merged, both ends included, by IP version."""

    name: str
    addresses: frozenset[str] = frozenset()
    ranges: tuple[tuple[int, tuple[Range, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Allow:
    """`group` "" allows anybody."""

    match: Match
    group: str = ""


@dataclass(frozen=True, slots=True)
class Isolation:
    """One direction of one pod of ours."""

    kind: str
    pod: str  # "namespace/name"
    uid: str
    addresses: tuple[str, ...]
    allows: tuple[Allow, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the kernel has to enforce on this node. `known`: addresses of our pods that have been judged."""

    isolations: tuple[Isolation, ...] = ()
    groups: tuple[Group, ...] = ()
    known: frozenset[str] = frozenset()
    ranges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NameServer:
    """Cluster DNS as pods ask it and as the kernel sees it after translation (see proxy/dns)."""

    service_addresses: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    port: int = 0
    namespace: str = "kube-system"
    labels: tuple[tuple[str, str], ...] = (("k8s-app", "kube-dns"),)


NO_SERVER = NameServer()


class _Compiler:
    def __init__(self, view: View, server: NameServer, memory: Memory) -> None:
        self._view = view
        self._server = server
        self._memory = memory
        self._groups: dict[str, Group] = {}
        self._shared: dict[int, tuple[str, tuple[Allow, ...]]] = {}  # of each rule: the view holds them all
        pods: dict[str, list[Pod]] = {}
        for pod in view.pods:
            pods.setdefault(pod.namespace, []).append(pod)
        self._pods = {namespace: tuple(found) for namespace, found in pods.items()}
        self._policies: dict[str, list[Policy]] = {}
        for policy in view.policies:
            self._policies.setdefault(policy.namespace, []).append(policy)
        self._labels = {pod.uid: dict(pod.labels) for pod in view.pods}

    def wanted(self, node: str) -> Wanted:
        local = [pod for pod in self._view.pods if pod.node == node]
        found = []
        for pod in local:
            for kind in (INGRESS, EGRESS):
                policies = self._selecting(pod, kind)
                if policies:
                    allows = dict.fromkeys(
                        allow
                        for policy in policies
                        for rule in (policy.ingress if kind == INGRESS else policy.egress)
                        for allow in self._allows(policy, kind, rule, pod)
                    )
                    title = f"{pod.namespace}/{pod.name}"
                    found.append(Isolation(kind, title, pod.uid, pod.addresses, tuple(allows)))
        used = {allow.group for isolation in found for allow in isolation.allows}
        return Wanted(
            isolations=tuple(found),
            groups=tuple(group for name, group in sorted(self._groups.items()) if name in used),
            known=frozenset(address for pod in local for address in pod.addresses),
            ranges=self._view.ranges,
        )

    def _selecting(self, pod: Pod, kind: str) -> list[Policy]:
        return [
            policy
            for policy in self._policies.get(pod.namespace, ())
            if kind in policy.kinds and policy.pods.matches(self._labels[pod.uid])
        ]

    def _allows(self, policy: Policy, kind: str, rule: PolicyRule, pod: Pod) -> Iterable[Allow]:
        if id(rule) not in self._shared:
            group = self._group(policy, rule.peers) if rule.peers else ""
            self._shared[id(rule)] = group, tuple(self._same_for_all(policy, kind, rule, group))
        group, allows = self._shared[id(rule)]
        yield from allows
        for port in rule.ports if kind == INGRESS else ():
            for name, protocol, value in pod.ports if port.name else ():
                if (name, protocol) == (port.name, port.protocol):
                    yield Allow(Match(protocol, value, value), group)

    def _same_for_all(self, policy: Policy, kind: str, rule: PolicyRule, group: str) -> Iterable[Allow]:
        """What a rule allows to each pod that it is for, whatever the pod calls its own ports."""
        if kind == EGRESS and self._reaches_server(policy, rule):
            yield from self._to_server(rule.ports)
        if not rule.ports:
            yield Allow(Match(), group)
        for port in rule.ports:
            if not port.name:
                yield Allow(Match(port.protocol, port.low, port.high), group)
            elif kind == EGRESS:
                yield from self._named(policy, rule.peers, port)

    def _named(self, policy: Policy, peers: tuple[Peer, ...], port: Port) -> Iterable[Allow]:
        """A port name towards others means what each of them calls so; address blocks have no names."""
        title = _title(policy, peers)
        numbers: dict[int, list[str]] = {}
        for namespace, pods in self._pods.items():
            source = (self._labels_of(namespace), pods)
            part = self._memory.part(
                ("named", title, port, namespace),
                source,
                partial(self._named_in, policy, peers, port, pods),
            )
            for number, addresses in part:
                numbers.setdefault(number, []).extend(addresses)
        for number in sorted(numbers):
            name = _hashed("pods", f"{title}/{port.protocol}/{port.name}/{number}")
            self._groups[name] = Group(name, frozenset(numbers[number]))
            yield Allow(Match(port.protocol, number, number), name)

    def _named_in(
        self, policy: Policy, peers: tuple[Peer, ...], port: Port, pods: tuple[Pod, ...]
    ) -> list[tuple[int, tuple[str, ...]]]:
        return [
            (number, pod.addresses)
            for pod in pods
            for name, protocol, number in pod.ports
            if (name, protocol) == (port.name, port.protocol)
            and (not peers or any(self._is_peer(policy, peer, pod) for peer in peers))
        ]

    def _group(self, policy: Policy, peers: tuple[Peer, ...]) -> str:
        """One group for all rules, of whichever policies, that mean the same peers."""
        title = _title(policy, peers)
        name = _hashed("peers", title)
        if name not in self._groups:
            blocks = tuple(peer.block for peer in peers if peer.block is not None)
            ranges = tuple((version, merged(blocks, version)) for version in (4, 6))
            members = [self._members(title, policy, peers, namespace) for namespace in self._pods]
            self._groups[name] = Group(
                name,
                self._memory.part(name, members, lambda: frozenset().union(*members)),
                tuple((version, found) for version, found in ranges if found),
            )
        return name

    def _members(
        self, title: str, policy: Policy, peers: tuple[Peer, ...], namespace: str
    ) -> frozenset[str]:
        pods = self._pods[namespace]
        return self._memory.part(
            ("members", title, namespace),
            (self._labels_of(namespace), pods),
            lambda: frozenset(
                address
                for pod in pods
                if any(self._is_peer(policy, peer, pod) for peer in peers)
                for address in pod.addresses
            ),
        )

    def _labels_of(self, namespace: str) -> Mapping[str, str]:
        return self._view.namespaces.get(namespace, {})

    def _is_peer(self, policy: Policy, peer: Peer, pod: Pod) -> bool:
        return self._fits(policy, peer, pod.namespace, self._labels[pod.uid])

    def _fits(self, policy: Policy, peer: Peer, namespace: str, labels: dict[str, str]) -> bool:
        if peer.block is not None:
            return False
        if peer.namespaces is None:
            if namespace != policy.namespace:
                return False
        elif not peer.namespaces.matches(self._labels_of(namespace)):
            return False
        return peer.pods is None or peer.pods.matches(labels)

    def _reaches_server(self, policy: Policy, rule: PolicyRule) -> bool:
        """Whether the rule means cluster DNS, which has no pods here: judged as if kube-dns's served it."""
        server = self._server
        if not server.port:
            return False
        if not rule.peers:
            return True
        for peer in rule.peers:
            if peer.block is not None:
                inside = merged((peer.block,), 4) + merged((peer.block,), 6)
                if any(_inside(address, inside) for address in server.service_addresses):
                    return True
            elif self._fits(policy, peer, server.namespace, dict(server.labels)):
                return True
        return False

    def _to_server(self, ports: Sequence[Port]) -> Iterable[Allow]:
        """Port 53 of the Service has become the server's own port by the time that policies are asked."""
        name = "name-server"
        self._groups[name] = Group(name, frozenset(self._server.addresses))
        for protocol in ("tcp", "udp"):
            asked = [port for port in ports if port.protocol == protocol]
            covers = any(port.name in ("dns", "dns-tcp") or port.low <= 53 <= port.high for port in asked)
            if not ports or covers or any(not port.low and not port.name for port in asked):
                yield Allow(Match(protocol, self._server.port, self._server.port), name)


def compile_policies(
    view: View, node: str, server: NameServer = NO_SERVER, memory: Memory | None = None
) -> Wanted:
    """What node `node` must enforce; nothing at all while there is no policy in the cluster. With the
    `memory` of the last pass it is the same, sooner.
    """
    return _Compiler(view, server, memory or Memory()).wanted(node) if view.policies else Wanted()


def _title(policy: Policy, peers: tuple[Peer, ...]) -> str:
    """What the peers are, in words that other policies have as well if they mean the same."""
    own = any(peer.block is None and peer.namespaces is None for peer in peers)
    shown = sorted(repr((_shown(peer.pods), _shown(peer.namespaces), peer.block)) for peer in peers)
    return "\n".join([policy.namespace if own else "", *shown])


def _shown(selector: LabelSelector | None) -> object:
    return None if selector is None else selector.requirements


@lru_cache(maxsize=4096)
def merged(blocks: tuple[Block, ...], version: int) -> tuple[Range, ...]:
    """The union of all blocks of one IP version, each without what it excepts, as sorted disjoint ranges."""
    size = 4 if version == 4 else 16
    parts: list[tuple[int, int]] = []
    for block in blocks:
        network = ipaddress.ip_network(block.cidr, strict=False)
        if network.version == version:
            left = [(int(network[0]), int(network[-1]))]
            for text in block.excepted:
                hole = ipaddress.ip_network(text, strict=False)
                left = [piece for whole in left for piece in _without(whole, (int(hole[0]), int(hole[-1])))]
            parts += left
    union: list[tuple[int, int]] = []
    for low, high in sorted(parts):
        if union and low <= union[-1][1] + 1:
            union[-1] = (union[-1][0], max(union[-1][1], high))
        else:
            union.append((low, high))
    return tuple((low.to_bytes(size, "big"), high.to_bytes(size, "big")) for low, high in union)


def _without(whole: tuple[int, int], hole: tuple[int, int]) -> list[tuple[int, int]]:
    low, high = whole
    pieces = [(low, min(high, hole[0] - 1)), (max(low, hole[1] + 1), high)]
    return [piece for piece in dict.fromkeys(pieces) if piece[0] <= piece[1]]


def _inside(address: str, ranges: tuple[Range, ...]) -> bool:
    packed = ipaddress.ip_address(address).packed
    return any(len(low) == len(packed) and low <= packed <= high for low, high in ranges)


def _hashed(kind: str, title: str) -> str:
    return f"{kind}-{hashlib.sha256(title.encode()).hexdigest()[:16]}"
