"""A view of Services → every chain and rule of the proxy: PURE, no kernel, no clock.

The layout is kube-proxy's iptables mode, names and comments included, so that what people and tools know
about KUBE-SVC-… chains stays true. A packet's way (table nat):

    PREROUTING, OUTPUT → KUBE-SERVICES ─ cluster IP, port ─→ KUBE-SVC-x ─ dice ─→ KUBE-SEP-y → DNAT
                              └ any local address → KUBE-NODEPORTS → KUBE-EXT-x (mark) ─┘
    POSTROUTING → KUBE-POSTROUTING: what carries the mark is masqueraded

x = first 16 letters of base32(sha256("namespace/name:port" + protocol)), y the same with the endpoint
appended. A Service without endpoints is refused in the filter table, where REJECT is allowed.

Node ports are not reachable by 127.0.0.1: it would need net.ipv4.conf.all.route_localnet=1, which opens
the node's loopback services to its neighbours (CVE-2020-8558). Source: pkg/proxy/iptables/proxier.go.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from proxy.changes import Endpoint, ServicePort, View
from proxy.config import ProxyConfig
from proxy.topology import NOWHERE, Place, Reachable, reachable

SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ = (
    "KUBE-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
)
EXTERNAL, FORWARD, FIREWALL, CANARY = (
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
)
FIXED_CHAINS = (SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ, EXTERNAL, FORWARD, FIREWALL, CANARY)
HASHED_PREFIXES = ("KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-")
TABLES = ("filter", "nat")

Ruleset = Mapping[str, Mapping[str, tuple[str, ...]]]
"""table → chain → rules, each without its leading "-A <chain>"."""


@dataclass(frozen=True, slots=True)
class Jump:
    """A rule in a built-in chain that leads to one of ours."""

    table: str
    chain: str
    target: str
    match: str

    @property
    def rule(self) -> str:
        return f"{self.match} -j {self.target}"


_NEW = "-m conntrack --ctstate NEW "
JUMPS = (
    Jump(
        "filter",
        "INPUT",
        EXTERNAL,
        _NEW + '-m comment --comment "kubernetes externally-visible service portals"',
    ),
    Jump("filter", "INPUT", FIREWALL, _NEW + '-m comment --comment "kubernetes load balancer firewall"'),
    Jump("filter", "FORWARD", FORWARD, '-m comment --comment "kubernetes forwarding rules"'),
    Jump("filter", "FORWARD", SERVICES, _NEW + '-m comment --comment "kubernetes service portals"'),
    Jump(
        "filter",
        "FORWARD",
        EXTERNAL,
        _NEW + '-m comment --comment "kubernetes externally-visible service portals"',
    ),
    Jump("filter", "FORWARD", FIREWALL, _NEW + '-m comment --comment "kubernetes load balancer firewall"'),
    Jump("filter", "OUTPUT", SERVICES, _NEW + '-m comment --comment "kubernetes service portals"'),
    Jump("filter", "OUTPUT", FIREWALL, _NEW + '-m comment --comment "kubernetes load balancer firewall"'),
    Jump("nat", "PREROUTING", SERVICES, '-m comment --comment "kubernetes service portals"'),
    Jump("nat", "OUTPUT", SERVICES, '-m comment --comment "kubernetes service portals"'),
    Jump("nat", "POSTROUTING", POSTROUTING, '-m comment --comment "kubernetes postrouting rules"'),
)
"""In reverse order of effect: each is inserted at the top of its chain, so the last one comes first."""


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = [one + other for one in _LETTERS for other in _LETTERS]


def chain_hash(text: str) -> str:
    """The first 16 letters of base32(sha256(text)): 80 bits, ten at a time. The library's b32encode is Python
    code, too, and took a third of the time of making rules."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10], "big")
    return "".join([_PAIRS[number >> shift & 1023] for shift in range(70, -1, -10)])


def port_chain(prefix: str, port: ServicePort) -> str:
    return prefix + chain_hash(port.title + port.protocol)


def endpoint_chain(port: ServicePort, endpoint: Endpoint) -> str:
    return "KUBE-SEP-" + chain_hash(port.title + port.protocol + endpoint.address)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one Service port needs: chains of its own (table nat), and rules in the chains all share."""

    own: Mapping[str, tuple[str, ...]]
    shared: Mapping[tuple[str, str], tuple[str, ...]]


class _Builder:
    def __init__(self, config: ProxyConfig, version: int) -> None:
        self.config = config
        self.cidr = _cidr(config, version)
        self.version = version
        self.nat: dict[str, list[str]] = defaultdict(list)
        self.filter: dict[str, list[str]] = defaultdict(list)

    def local_destinations(self) -> list[str]:
        """Matches of the addresses that node ports answer on, never the loopback ones."""
        own = "127.0.0.0/8" if self.version == 4 else "::1/128"
        ranges = self.config.node_port_ranges(self.version)
        if ranges is None:
            return [f"-m addrtype --dst-type LOCAL ! -d {own}"]
        loopback = ipaddress.ip_network(own)
        found = []
        for text in ranges:
            network = ipaddress.ip_network(text)
            if network.prefixlen == 0:
                found.append(f"-m addrtype --dst-type LOCAL ! -d {own}")
            elif network.version == loopback.version and not network.overlaps(loopback):
                found.append(f"-d {text} -m addrtype --dst-type LOCAL")
        return found


@lru_cache(maxsize=8)
def _cidr(config: ProxyConfig, version: int) -> str:
    return config.cidr(version)  # asked for each Service


SHARED = (
    ("filter", SERVICES),
    ("filter", EXTERNAL),
    ("filter", FIREWALL),
    ("nat", SERVICES),
    ("nat", NODEPORTS),
)
"""Chains with rules of many Services, by table."""


def piece(port: ServicePort, found: Reachable, config: ProxyConfig, version: int = 4) -> Piece:
    """One Service port's share of the rules."""
    builder = _Builder(config, version)
    _service(builder, port, found)
    shared = {}
    for table, chain in SHARED:
        rules = (builder.nat if table == "nat" else builder.filter).pop(chain, None)
        if rules:
            shared[table, chain] = tuple(rules)
    return Piece({chain: tuple(rules) for chain, rules in builder.nat.items()}, shared)


def frame(config: ProxyConfig, version: int = 4) -> Ruleset:
    """The chains that are there without any Service; shared ones empty, see `last_rules`."""
    builder = _Builder(config, version)
    for chain in (SERVICES, EXTERNAL, FORWARD, FIREWALL, CANARY):
        builder.filter[chain] = []
    for chain in (SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ, CANARY):
        builder.nat[chain] = []
    _frame(builder)
    _forwarding(builder)
    return {
        "filter": {chain: tuple(rules) for chain, rules in builder.filter.items()},
        "nat": {chain: tuple(rules) for chain, rules in builder.nat.items()},
    }


def last_rules(config: ProxyConfig, version: int = 4) -> tuple[str, ...]:
    """What ends nat's KUBE-SERVICES: node ports come after all cluster IPs."""
    note = "kubernetes service nodeports; NOTE: this must be the last rule in this chain"
    return tuple(
        f'-m comment --comment "{note}" {match} -j {NODEPORTS}'
        for match in _Builder(config, version).local_destinations()
    )


def build(view: View, config: ProxyConfig, version: int = 4, place: Place = NOWHERE) -> Ruleset:
    """All chains of ours with their rules, for both tables."""
    tables = {table: dict(chains) for table, chains in frame(config, version).items()}
    pieces = [piece(port, reachable(port, view.of(port), place), config, version) for port in view.services]
    for made in pieces:
        tables["nat"].update(made.own)
    for table, chain in SHARED:
        tables[table][chain] = joined(table, chain, pieces, config, version)
    return tables


def joined(
    table: str, chain: str, pieces: Iterable[Piece], config: ProxyConfig, version: int = 4
) -> tuple[str, ...]:
    """A shared chain's rules, the pieces' in their order."""
    rules = [rule for made in pieces for rule in made.shared.get((table, chain), ())]
    if (table, chain) == ("nat", SERVICES):
        rules += last_rules(config, version)
    return tuple(rules)


def _frame(builder: _Builder) -> None:
    mark = builder.config.mark
    builder.nat[MARK_MASQ] = [f"-j MARK --or-mark {mark}"]
    builder.nat[POSTROUTING] = [
        f"-m mark ! --mark {mark}/{mark} -j RETURN",
        # The mark is taken off, lest the packet be masqueraded again if it passes once more (IPsec, …).
        f"-j MARK --xor-mark {mark}",
        '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
    ]


def _forwarding(builder: _Builder) -> None:
    mark, cidr = builder.config.mark, builder.cidr
    rules = builder.filter[FORWARD]
    # A packet conntrack cannot place would leave untranslated, and its sender be reset (issue 74839).
    rules.append("-m conntrack --ctstate INVALID -j DROP")
    rules.append(f'-m comment --comment "kubernetes forwarding rules" -m mark --mark {mark}/{mark} -j ACCEPT')
    rules.append(
        '-m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    )
    if cidr:
        # Docker and many firewalls set FORWARD's policy to DROP; pods' own traffic must pass all the same.
        rules.append(f'-s {cidr} -m comment --comment "kubernetes forwarding pod source rule" -j ACCEPT')
        rules.append(f'-d {cidr} -m comment --comment "kubernetes forwarding pod destination rule" -j ACCEPT')


def _service(builder: _Builder, port: ServicePort, found: Reachable) -> None:
    proto = f"-m {port.protocol} -p {port.protocol}"
    addresses = tuple(ip for ip in port.external_ips if builder.config.allows_external_ip(ip))
    external = bool(port.node_port or port.ingress_ips or addresses)
    tail = chain_hash(port.title + port.protocol)
    svc, svl, ext = "KUBE-SVC-" + tail, "KUBE-SVL-" + tail, "KUBE-EXT-" + tail
    uses_cluster = bool(found.cluster) and (not port.internal_local or external)
    uses_local = bool(found.local) and (port.internal_local or (external and port.external_local))
    internal = svl if port.internal_local else svc

    where = f"{proto} -d {port.cluster_ip} --dport {port.port}"
    if found.internal:
        match = f'-m comment --comment "{port.title} cluster IP" {where}'
        builder.nat[SERVICES].append(f"{match} -j {internal}")
        if builder.config.masquerade_all:
            builder.nat[internal].append(f"{match} -j {MARK_MASQ}")
        elif builder.cidr:
            builder.nat[internal].append(f"{match} ! -s {builder.cidr} -j {MARK_MASQ}")
    else:
        builder.filter[SERVICES].append(_refusal(port, found, where))
    if external:
        _external(builder, port, found, proto, ext, addresses)
        if found.cluster:
            _external_chain(builder, port, ext, svc, svl if port.external_local else svc, bool(found.local))
    used = [*(found.cluster if uses_cluster else ()), *(found.local if uses_local else ())]
    chains = {endpoint: endpoint_chain(port, endpoint) for endpoint in dict.fromkeys(used)}
    if uses_cluster:
        _balance(builder, port, svc, {one: chains[one] for one in found.cluster})
    if uses_local:
        _balance(builder, port, svl, {one: chains[one] for one in found.local})
    for endpoint, chain in chains.items():
        _endpoint(builder, port, endpoint, chain, proto)


def _refusal(port: ServicePort, found: Reachable, where: str) -> str:
    # Endpoints elsewhere only: silence, as another node may answer; none at all: a clear refusal.
    if found.cluster:
        return f'-m comment --comment "{port.title} has no local endpoints" {where} -j DROP'
    return f'-m comment --comment "{port.title} has no endpoints" {where} -j REJECT'


def _external(
    builder: _Builder, port: ServicePort, found: Reachable, proto: str, ext: str, addresses: tuple[str, ...]
) -> None:
    """Where traffic from outside enters: node port, external IPs and load balancer addresses."""
    for ip in addresses:
        where = f"{proto} -d {ip} --dport {port.port}"
        if not found.external:
            builder.filter[EXTERNAL].append(_refusal(port, found, where))
        if found.cluster:
            match = f'-m comment --comment "{port.title} external IP"'
            builder.nat[SERVICES].append(f"{match} {where} -j {ext}")
    for ip in port.ingress_ips:
        where = f"{proto} -d {ip} --dport {port.port}"
        if not found.external:
            builder.filter[EXTERNAL].append(_refusal(port, found, where))
        if not found.cluster:
            continue
        match = f'-m comment --comment "{port.title} loadbalancer IP"'
        if not port.source_ranges:
            builder.nat[SERVICES].append(f"{match} {where} -j {ext}")
            continue
        guard = port_chain("KUBE-FW-", port)
        builder.nat[SERVICES].append(f"{match} {where} -j {guard}")
        builder.nat[guard] += [f"{match} -s {source} -j {ext}" for source in port.source_ranges]
        builder.filter[FIREWALL].append(
            f'-m comment --comment "{port.title} traffic not accepted by {guard}" {where} -j DROP'
        )
    if port.node_port:
        if found.cluster:
            builder.nat[NODEPORTS].append(
                f"-m comment --comment {port.title} {proto} --dport {port.node_port} -j {ext}"
            )
        if not found.external:
            for match in builder.local_destinations():
                where = f"{match} {proto} --dport {port.node_port}"
                builder.filter[EXTERNAL].append(_refusal(port, found, where))


def _external_chain(
    builder: _Builder, port: ServicePort, ext: str, svc: str, target: str, has_local: bool
) -> None:
    rules, cidr = builder.nat[ext], builder.cidr
    if not port.external_local:
        rules.append(
            f'-m comment --comment "masquerade traffic for {port.title} external destinations" -j {MARK_MASQ}'
        )
    else:
        if cidr:
            rules.append(
                f'-m comment --comment "pod traffic for {port.title} external destinations" '
                f"-s {cidr} -j {svc}"
            )
        local = "-m addrtype --src-type LOCAL"
        rules += [
            f'-m comment --comment "masquerade LOCAL traffic for {port.title} external destinations" '
            f"{local} -j {MARK_MASQ}",
            f'-m comment --comment "route LOCAL traffic for {port.title} external destinations" '
            f"{local} -j {svc}",
        ]
        if not has_local:
            return
    rules.append(f"-j {target}")


def _balance(builder: _Builder, port: ServicePort, chain: str, endpoints: Mapping[Endpoint, str]) -> None:
    rules = builder.nat[chain]
    if port.affinity_seconds:
        for endpoint, sep in endpoints.items():
            rules.append(
                f'-m comment --comment "{port.title} -> {endpoint.address}" -m recent --name {sep} --rcheck '
                f"--seconds {port.affinity_seconds} --reap -j {sep}"
            )
    left = len(endpoints)
    for endpoint, sep in endpoints.items():
        # Each rule takes its share of what the ones above let through: 1/n, 1/(n-1), …, the rest.
        dice = f" -m statistic --mode random --probability {1 / left:.10f}" if left > 1 else ""
        rules.append(f'-m comment --comment "{port.title} -> {endpoint.address}"{dice} -j {sep}')
        left -= 1


def _endpoint(builder: _Builder, port: ServicePort, endpoint: Endpoint, sep: str, proto: str) -> None:
    match = f"-m comment --comment {port.title}"
    affinity = f" -m recent --name {sep} --set" if port.affinity_seconds else ""
    builder.nat[sep] = [
        # A pod that reaches itself must see another sender, or it would answer itself directly (hairpin).
        f"{match} -s {endpoint.ip} -j {MARK_MASQ}",
        f"{match}{affinity} {proto} -j DNAT --to-destination {endpoint.address}",
    ]
