"""The nftables backend's table: its sets, its chains, and the rules in them. PURE.

Nothing here grows with the number of Services: they are elements of maps, and all Services with, say, two
endpoints share one chain. A connection's first packet to a cluster IP takes three steps:

    nat-prerouting, nat-output → services ─ map service-ips: address . protocol . port ─→ chain cluster-2
      ─ map service-endpoints: the same . random number below 2 ─→ DNAT to address . port

The other entrances go the same way: external-… for load balancer and external IPs, nodeport-… with maps
without address; each entrance has its own elements. "-local" chains know this node's endpoints only (traffic
policies), "-affinity-N" chains remember for N seconds which client went to which endpoint's number, in one
set per number that packets fill. What is to be masqueraded carries the mark from here to nat-postrouting.
Refusals and source ranges are looked up in chains of type filter before the translation. Names and meanings
follow upstream's nftables mode where it has the same thing; upstream has a chain per Service and endpoint.
Source: pkg/proxy/nftables/proxier.go.

No rule uses what one map gave as part of another map's key: the kernel could, but nft 1.0.6 aborts when it
lists such a rule, and with it every other rule of the host.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, replace
from functools import lru_cache

from proxy import nfexpressions as nfx
from proxy.config import ProxyConfig
from proxy.nfexpressions import Base, Change, Code, Ct, Meta, Op
from proxy.nfobjects import (
    Chain,
    Family,
    Flag,
    Hook,
    Message,
    Set,
    Table,
    Type,
    add_chain,
    add_rule,
    add_set,
    add_table,
    flush_chain,
)

TABLE = "kubelet-py-proxy"

SERVICE_IPS, NODE_PORTS = "service-ips", "service-nodeports"
ENDPOINTS, ENDPOINTS_LOCAL = "service-endpoints", "service-endpoints-local"
PORT_ENDPOINTS, PORT_ENDPOINTS_LOCAL = "nodeport-endpoints", "nodeport-endpoints-local"
NO_ENDPOINT_IPS, NO_ENDPOINT_PORTS = "no-endpoint-services", "no-endpoint-nodeports"
FIREWALL_IPS, FIREWALL_ALLOW = "firewall-ips", "firewall-allow"
HAIRPIN = "hairpin-connections"
AFFINITY, PORT_AFFINITY = "affinity-", "nodeport-affinity-"
"""Names of the sets that packets fill, without the endpoint's number."""
MOST_CLIENTS = 1 << 15
"""Clients that affinity remembers per number; those beyond it are balanced without. Takes 0.5 MB each."""

SERVICES, REJECT, REFUSALS, FIREWALL = "services", "reject-chain", "service-endpoints-check", "firewall-check"
BASE_CHAINS = (
    Chain("nat-prerouting", "nat", Hook.PREROUTING, -100),
    Chain("nat-output", "nat", Hook.OUTPUT, -100),
    Chain("nat-postrouting", "nat", Hook.POSTROUTING, 100),
    Chain("filter-prerouting", "filter", Hook.PREROUTING, -110),
    Chain("filter-input", "filter", Hook.INPUT, -110),
    Chain("filter-forward", "filter", Hook.FORWARD, -110),
    Chain("filter-output", "filter", Hook.OUTPUT, -110),
)
PLAIN_CHAINS = tuple(Chain(name) for name in (SERVICES, REJECT, REFUSALS, FIREWALL))
FIXED_CHAINS = frozenset(c.name for c in (*BASE_CHAINS, *PLAIN_CHAINS))


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A chain that balances: `entrance` "cluster", "external" or "nodeport".

    `local`: to the `count` endpoints of this node, but clients in the cluster to all `cluster` ones.
    `direct`: an outer entrance without masquerading. `affinity` in seconds. `slot`, from 0 on: the chain of
    the one endpoint with this number, for clients that stay with it.
    """

    entrance: str
    count: int
    affinity: int = 0
    local: bool = False
    cluster: int = 0
    direct: bool = False
    slot: int = -1

    @property
    def chain(self) -> str:
        return _chain(self)

    def _name(self) -> str:
        parts = [self.entrance, str(self.count) if self.slot < 0 else f"slot-{self.slot}"]
        if self.local:
            parts.append("local")
        if self.local and self.entrance != "cluster" and self.slot < 0:
            parts.append(f"of-{self.cluster}")
        if self.direct:
            parts.append("direct")
        if self.affinity:
            parts.append(f"affinity-{self.affinity}")
        return "-".join(parts)

    def inside(self) -> tuple[Target, ...]:
        """Where clients in the cluster go instead: all endpoints, masqueraded and not."""
        if not self.local or self.entrance == "cluster" or not self.cluster or self.slot >= 0:
            return ()
        marked = Target(self.entrance, self.cluster, self.affinity)
        return marked, replace(marked, direct=True)

    def slots(self) -> tuple[Target, ...]:
        if not self.affinity or self.slot >= 0:
            return ()
        one = Target(self.entrance, 1, self.affinity, self.local)
        return tuple(replace(one, slot=n) for n in range(self.count))

    def all(self) -> tuple[Target, ...]:
        """This chain and those it leads to."""
        inside = self.inside()
        return (self, *self.slots(), *(found for one in inside for found in (one, *one.slots())))


@lru_cache(maxsize=1024)
def _chain(target: Target) -> str:
    return target._name()


class Frame:
    """The layout for one address family and configuration."""

    def __init__(self, config: ProxyConfig, version: int) -> None:
        self.config = config
        self.version = version
        self.table = Table(Family.IP if version == 4 else Family.IP6, TABLE)
        self.address = Type.IPV4 if version == 4 else Type.IPV6
        self.words = 1 if version == 4 else 4
        self._size = 4 * self.words
        self._source_at, self._destination_at = (12, 16) if version == 4 else (8, 24)
        self._mark = struct.pack("=I", 1 << config.masquerade_bit)

    # --- sets --------------------------------------------------------------------------------------

    def sets(self) -> tuple[Set, ...]:
        address = self.address
        place = (address, Type.PROTOCOL, Type.PORT)
        port = (Type.PROTOCOL, Type.PORT)
        target = (address, Type.PORT)
        return (
            Set(SERVICE_IPS, place, verdicts=True),
            Set(NODE_PORTS, port, verdicts=True),
            Set(ENDPOINTS, (*place, Type.MARK), target),
            Set(ENDPOINTS_LOCAL, (*place, Type.MARK), target),
            Set(PORT_ENDPOINTS, (*port, Type.MARK), target),
            Set(PORT_ENDPOINTS_LOCAL, (*port, Type.MARK), target),
            Set(NO_ENDPOINT_IPS, place, verdicts=True),
            Set(NO_ENDPOINT_PORTS, port, verdicts=True),
            Set(FIREWALL_IPS, place),
            Set(FIREWALL_ALLOW, (*place, address), flags=Flag.INTERVAL),
            Set(HAIRPIN, (address, address)),
        )

    def memory(self, target: Target) -> Set | None:
        """The set that remembers the clients of a slot."""
        if target.slot < 0:
            return None
        fields = (self.address, *(() if target.entrance == "nodeport" else (self.address,)))
        key = (*fields, Type.PROTOCOL, Type.PORT)
        flags = Flag.TIMEOUT | Flag.DYNAMIC
        return Set(memory_name(target.entrance, target.slot), key, flags=flags, size=MOST_CLIENTS)

    # --- the fixed part ----------------------------------------------------------------------------

    def base(self) -> list[Message]:
        """Table, sets, chains: no harm where they are there already."""
        table = self.table
        messages = [add_table(table)]
        messages += [add_set(table, made, number) for number, made in enumerate(self.sets(), 1)]
        messages += [add_chain(table, chain) for chain in (*PLAIN_CHAINS, *BASE_CHAINS)]
        return messages

    def fixed_rules(self) -> list[Message]:
        """The rules of the fixed chains, written anew: within one transaction no packet misses them."""
        rules = self._nat() + self._filter()
        flushed = [flush_chain(self.table, chain.name) for chain in (*PLAIN_CHAINS, *BASE_CHAINS)]
        return flushed + rules

    def _rule(self, chain: str, *expressions: bytes, comment: str = "") -> Message:
        return add_rule(self.table, chain, *expressions, comment=comment)

    def _nat(self) -> list[Message]:
        to_services = nfx.verdict(Code.JUMP, SERVICES)
        rules = [
            self._rule("nat-prerouting", to_services),
            self._rule("nat-output", to_services),
            self._rule(SERVICES, *self._place(0), nfx.lookup_verdict(SERVICE_IPS, 0)),
        ]
        rules += [
            self._rule(SERVICES, *match, *self._port(0), nfx.lookup_verdict(NODE_PORTS, 0))
            for match in self._node_addresses()
        ]
        marked = [nfx.meta(0, Meta.MARK), nfx.mask(0, self._mark), nfx.compare(0, bytes(4), Op.NOT_EQUAL)]
        # The mark is taken off, lest the packet be masqueraded again if it passes once more (IPsec, …).
        unmark = [
            nfx.meta(0, Meta.MARK),
            nfx.mask(0, b"\xff\xff\xff\xff", self._mark),
            nfx.set_meta(Meta.MARK, 0),
        ]
        hairpin = [self._source(0), self._destination(self.words), nfx.lookup(HAIRPIN, 0)]
        rules += [
            self._rule("nat-postrouting", *marked, *unmark, nfx.masquerade(), comment="service traffic"),
            self._rule("nat-postrouting", *hairpin, nfx.masquerade(), comment="a pod that reached itself"),
        ]
        return rules

    def _node_addresses(self) -> list[list[bytes]]:
        """Matches of the addresses that node ports answer on; loopback ones never do (CVE-2020-8558)."""
        here = [nfx.address_type(0), nfx.compare(0, struct.pack("=I", nfx.LOCAL_ADDRESS))]
        loopback = ipaddress.ip_network("127.0.0.0/8" if self.version == 4 else "::1/128")
        outside = [self._destination(0), *self._network(0, loopback, Op.NOT_EQUAL)]
        ranges = self.config.node_port_ranges(self.version)
        if ranges is None:
            return [[*here, *outside]]
        networks = [ipaddress.ip_network(text) for text in ranges]
        there = self._destination(0)  # the mask before has changed the register
        return [[*here, *outside, there, *self._network(0, network, Op.EQUAL)] for network in networks]

    def _filter(self) -> list[Message]:
        fresh = [
            nfx.ct(0, Ct.STATE),
            nfx.mask(0, struct.pack("=I", nfx.NEW)),
            nfx.compare(0, bytes(4), Op.NOT_EQUAL),
        ]
        invalid = [
            nfx.ct(0, Ct.STATE),
            nfx.mask(0, struct.pack("=I", nfx.INVALID)),
            nfx.compare(0, bytes(4), Op.NOT_EQUAL),
        ]
        source_at = self.words + 2
        rules = [
            # A packet conntrack cannot place would leave untranslated, and its sender be reset (issue 74839).
            self._rule("filter-forward", *invalid, nfx.verdict(Code.DROP)),
            self._rule("filter-prerouting", *fresh, nfx.verdict(Code.JUMP, FIREWALL)),
            self._rule("filter-output", *fresh, nfx.verdict(Code.JUMP, FIREWALL)),
            self._rule(
                FIREWALL,
                *self._place(0),
                nfx.lookup(FIREWALL_IPS, 0),
                self._source(source_at),
                nfx.lookup(FIREWALL_ALLOW, 0, inverted=True),
                nfx.verdict(Code.DROP),
                comment="not in loadBalancerSourceRanges",
            ),
            self._rule(REFUSALS, *self._place(0), nfx.lookup_verdict(NO_ENDPOINT_IPS, 0)),
            self._rule(REJECT, nfx.reject_icmp(3 if self.version == 4 else 4)),
        ]
        rules += [
            self._rule(chain, *fresh, nfx.verdict(Code.JUMP, REFUSALS))
            for chain in ("filter-input", "filter-forward", "filter-output")
        ]
        rules += [
            self._rule(REFUSALS, *match, *self._port(0), nfx.lookup_verdict(NO_ENDPOINT_PORTS, 0))
            for match in self._node_addresses()
        ]
        return rules

    # --- balancing chains --------------------------------------------------------------------------

    def target_rules(self, target: Target) -> list[Message]:
        """The chain's rules; the chains of `all` and the slots' memories must exist."""
        if target.slot >= 0:
            found = self._slot(target)
        elif target.count == 0:
            # Endpoints elsewhere only: silence, as another node may answer.
            found = [*self._before(target), [nfx.verdict(Code.DROP)]]
        elif target.affinity:
            found = [*self._before(target), *self._sticky(target)]
        else:
            found = [*self._before(target), self._pick(target, target.count)]
        return [self._rule(target.chain, *parts) for parts in found]

    def _pick(self, target: Target, count: int, first: int = 0) -> list[bytes]:
        """Go to one of `count` endpoints from number `first` on, at random."""
        port, to = target.entrance == "nodeport", 2 * self.words + 2
        at = self._port(0) if port else self._place(0)
        number = 2 if port else self.words + 2
        names = (PORT_ENDPOINTS, PORT_ENDPOINTS_LOCAL) if port else (ENDPOINTS, ENDPOINTS_LOCAL)
        random = nfx.random_number(number, count, first)
        address, translated = to, to + self.words
        nat = nfx.destination_nat(self.table.family, address, translated)
        return [*at, random, nfx.lookup_data(names[target.local], 0, to), nat]

    def _client(self, target: Target) -> list[bytes]:
        """Who wants what: the key of a memory."""
        at = self._port(self.words) if target.entrance == "nodeport" else self._place(self.words)
        return [self._source(0), *at]

    def _sticky(self, target: Target) -> list[list[bytes]]:
        """To the slot that remembers the client, else to any: as the numbers are, one rule each."""
        slots = target.slots()
        known = [
            [
                *self._client(target),
                nfx.lookup(memory_name(target.entrance, slot.slot), 0),
                nfx.verdict(Code.GOTO, slot.chain),
            ]
            for slot in slots
        ]
        # Each takes its share of what the ones before let through: 1/n, 1/(n-1), …, the rest.
        drawn = [
            [
                nfx.random_number(0, target.count - slot.slot),
                nfx.compare(0, bytes(4)),
                nfx.verdict(Code.GOTO, slot.chain),
            ]
            for slot in slots
        ]
        return [*known, *drawn]

    def _slot(self, target: Target) -> list[list[bytes]]:
        """Remember the client, for so long anew; where the memory is full, go on without."""
        name, timeout = memory_name(target.entrance, target.slot), target.affinity * 1000
        remember = nfx.dynamic_set(name, Change.UPDATE, 0, timeout_ms=timeout)
        go = self._pick(target, 1, target.slot)
        return [[*self._client(target), remember, *go], go]

    def _before(self, target: Target) -> list[list[bytes]]:
        """What is marked for masquerading, and who is sent to another chain."""
        mark = [
            nfx.meta(0, Meta.MARK),
            nfx.mask(0, struct.pack("=I", ~(1 << self.config.masquerade_bit) & 0xFFFFFFFF), self._mark),
            nfx.set_meta(Meta.MARK, 0),
        ]
        cidr = self.config.cidr(self.version)
        pods = ipaddress.ip_network(cidr) if cidr else None
        if target.entrance == "cluster":
            if self.config.masquerade_all:
                return [mark]
            return [[self._source(0), *self._network(0, pods, Op.NOT_EQUAL), *mark]] if pods else []
        if not target.local:
            return [] if target.direct else [mark]
        if not target.cluster:
            return []
        marked, direct = (t.chain for t in target.inside())
        rules = []
        if pods:
            rules.append([self._source(0), *self._network(0, pods, Op.EQUAL), nfx.verdict(Code.GOTO, direct)])
        local = nfx.compare(0, struct.pack("=I", nfx.LOCAL_ADDRESS))
        rules.append([nfx.address_type(0, source=True), local, nfx.verdict(Code.GOTO, marked)])
        return rules

    # --- pieces of rules ---------------------------------------------------------------------------

    def _source(self, word: int) -> bytes:
        return nfx.payload(word, Base.NETWORK, self._source_at, self._size)

    def _destination(self, word: int) -> bytes:
        return nfx.payload(word, Base.NETWORK, self._destination_at, self._size)

    def _port(self, word: int) -> list[bytes]:
        return [nfx.meta(word, Meta.L4_PROTOCOL), nfx.payload(word + 1, Base.TRANSPORT, 2, 2)]

    def _place(self, word: int) -> list[bytes]:
        return [self._destination(word), *self._port(word + self.words)]

    def _network(
        self, word: int, network: ipaddress.IPv4Network | ipaddress.IPv6Network, op: Op
    ) -> list[bytes]:
        mask = nfx.mask(word, network.netmask.packed)
        return [mask, nfx.compare(word, network.network_address.packed, op)]


def memory_name(entrance: str, slot: int) -> str:
    return f"{PORT_AFFINITY if entrance == 'nodeport' else AFFINITY}{slot}"


def filled_by_packets(name: str) -> bool:
    return name.startswith((AFFINITY, PORT_AFFINITY))
