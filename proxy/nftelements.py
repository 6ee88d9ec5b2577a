"""A Service port → the elements that stand for it in the nftables backend's maps. PURE.

`nftframe` says what the maps mean. Elements are kept as the bytes the kernel wants, and one that did not
change is never sent again: an endpoint keeps its number as long as it lives, so that one which comes or goes
touches its own element, at most one other, and the verdict that says how many there are.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from proxy import nftframe as names
from proxy.changes import Endpoint, ServicePort
from proxy.config import ProxyConfig
from proxy.nfexpressions import Code
from proxy.nfobjects import Element, Verdict, encode, encode_data, encode_key, encode_verdict
from proxy.nftframe import Target
from proxy.topology import Reachable

PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
Member = tuple[str, bytes]
"""A set's name and an encoded element."""
Place = tuple[str, int]
"""An endpoint's address and port."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Which number each endpoint has, in the cluster's and in this node's list."""

    cluster: tuple[Place, ...] = ()
    local: tuple[Place, ...] = ()


Remembered = tuple[str, bytes, bytes]
"""A set of affinity, the entrance's part of its key, and the endpoint it stands for there."""


@dataclass(slots=True)
class Wanted:
    """What one Service needs in the kernel."""

    members: list[Member] = field(default_factory=list)
    targets: set[Target] = field(default_factory=set)
    affine: set[Remembered] = field(default_factory=set)

    def add(self, name: str, key: bytes, data: bytes = b"") -> None:
        self.members.append((name, encode_key(key, encode_data(data) if data else b"")))

    def send(self, name: str, key: bytes, target: Target) -> None:
        self.targets.update(_all(target))
        self.members.append((name, encode_key(key, _goto(target.chain))))

    def refuse(self, name: str, key: bytes, silently: bool) -> None:
        self.members.append((name, encode_key(key, _DROP if silently else _goto(names.REJECT))))


def slots(before: Slots, found: Reachable) -> Slots:
    return Slots(arranged(before.cluster, found.cluster), arranged(before.local, found.local))


def arranged(before: Sequence[Place], endpoints: Iterable[Endpoint]) -> tuple[Place, ...]:
    """Those that stay keep their number where they can, newcomers take what is free, the last fill holes."""
    wanted = list(dict.fromkeys((e.ip, e.port) for e in endpoints))
    if not before or list(before) == wanted:
        return tuple(wanted)
    there = set(wanted)
    kept = set(before) & there
    newcomers = [place for place in wanted if place not in kept]
    row: list[Place | None] = [place if place in kept else None for place in before]
    for n, place in enumerate(row):
        if place is None and newcomers:
            row[n] = newcomers.pop(0)
    result = [*row, *newcomers]
    while None in result:
        last = result.pop()
        if last is not None:
            result[result.index(None)] = last
    return tuple(place for place in result if place is not None)


def elements(
    wanted: Wanted, port: ServicePort, found: Reachable, numbered: Slots, config: ProxyConfig
) -> None:
    """Add what `port` needs."""
    protocol = struct.pack("=B3x", PROTOCOLS[port.protocol])
    tail = protocol + _port(port.port)
    identity = _address(port.cluster_ip) + tail
    cluster, local = len(numbered.cluster), len(numbered.local)
    addresses = [*port.ingress_ips, *(ip for ip in port.external_ips if config.allows_external_ip(ip))]
    external = bool(port.node_port or addresses)

    if found.internal:
        count = local if port.internal_local else cluster
        target = Target("cluster", count, port.affinity_seconds, local=port.internal_local)
        wanted.send(names.SERVICE_IPS, identity, target)
        _pool(wanted, identity, numbered, target)
    else:
        wanted.refuse(names.NO_ENDPOINT_IPS, identity, silently=cluster > 0)
    if external:
        _external(wanted, port, addresses, tail, numbered)
    for endpoint in dict.fromkeys((*found.cluster, *found.local)):
        # Pods of other nodes reach themselves there; they never come back through this one.
        if endpoint.local or endpoint.homeless:
            wanted.add(names.HAIRPIN, _address(endpoint.ip) * 2)
    if port.source_ranges:
        for ip in port.ingress_ips:
            wanted.add(names.FIREWALL_IPS, _address(ip) + tail)
            wanted.members += _allowed(_address(ip) + tail, port.source_ranges)


def _external(wanted: Wanted, port: ServicePort, addresses: list[str], tail: bytes, numbered: Slots) -> None:
    """Entrances from outside: load balancer and external addresses, and the node port."""
    cluster, local = len(numbered.cluster), len(numbered.local)
    entrances = [("external", _address(ip) + tail) for ip in addresses]
    if port.node_port:
        entrances.append(("nodeport", tail[:4] + _port(port.node_port)))
    for entrance, key in entrances:
        outer = entrance == "external"
        if not cluster:
            refusals = names.NO_ENDPOINT_IPS if outer else names.NO_ENDPOINT_PORTS
            wanted.refuse(refusals, key, silently=False)
            continue
        if port.external_local:
            target = Target(entrance, local, port.affinity_seconds, local=True, cluster=cluster)
        else:
            target = Target(entrance, cluster, port.affinity_seconds)
        wanted.send(names.SERVICE_IPS if outer else names.NODE_PORTS, key, target)
        _pool(wanted, key, numbered, target)
        for inside in target.inside()[:1]:
            _pool(wanted, key, numbered, inside)


def _pool(wanted: Wanted, key: bytes, numbered: Slots, target: Target) -> None:
    """The endpoints that an entrance balances over."""
    if target.entrance == "nodeport":
        found = (names.PORT_ENDPOINTS, names.PORT_ENDPOINTS_LOCAL)
    else:
        found = (names.ENDPOINTS, names.ENDPOINTS_LOCAL)
    for number, (ip, port) in enumerate(numbered.local if target.local else numbered.cluster):
        data = _address(ip) + _port(port)
        wanted.add(found[target.local], key + struct.pack("=I", number), data)
        if target.affinity:
            wanted.affine.add((names.memory_name(target.entrance, number), key, data))


def _allowed(place: bytes, ranges: Iterable[str]) -> list[Member]:
    # Ranges within ranges would be refused as overlapping.
    networks = [ipaddress.ip_network(text, strict=False) for text in ranges]
    found: list[Member] = []
    for network in ipaddress.collapse_addresses(networks):  # type: ignore[type-var]
        first, last = network.network_address.packed, network.broadcast_address.packed
        found.append((names.FIREWALL_ALLOW, encode(Element(place + first, key_end=place + last))))
    return found


def _address(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def _port(number: int) -> bytes:
    return struct.pack(">Hxx", number)


_DROP = encode_verdict(Verdict(Code.DROP))


@lru_cache(maxsize=1024)
def _goto(chain: str) -> bytes:
    return encode_verdict(Verdict(Code.GOTO, chain))


@lru_cache(maxsize=1024)
def _all(target: Target) -> tuple[Target, ...]:
    return target.all()
