"""hostPort: a port of the node that leads to a port of a pod, by destination NAT.

Chains as upstream's iptables back end lays them out, so that `iptables -t nat -S` reads the same:

    PREROUTING, OUTPUT  -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
    CNI-HOSTPORT-DNAT   -p tcp … --destination-ports 8080 -j CNI-DN-<hash of network and container>
    CNI-DN-<hash>       -s <pod's subnet> --dport 8080 -j CNI-HOSTPORT-SETMARK   (a pod that calls itself)
                        --dport 8080 -j DNAT --to-destination 10.244.1.5:80
    POSTROUTING         -j CNI-HOSTPORT-MASQ, which masquerades what carries mark 0x2000

The port is not reachable by 127.0.0.1: that needs route_localnet=1, which lets neighbours on the link
reach the node's loopback services (CVE-2020-8558). Use the node's address.
"""

from __future__ import annotations

import _thread
import hashlib
import ipaddress
import sys
from collections.abc import Sequence

from cni.conntrack import forget_udp
from cni.errors import InvalidConfig, PluginFailure, UnsupportedField
from cni.frozen import frozen
from cni.iptables import Iptables, available, line
from cni.types import Request, Result, folded, listed, valid_attachments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

DNAT, SETMARK, MASQ = "CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"
_PORTS_PER_RULE = 15  # the multiport match takes no more
_MAPPING_KEYS = ("hostPort", "containerPort", "protocol", "hostIP")
_MARK_BIT = 13  # the mark 0x2000
_NONE: Mapping[int, tuple[str, ...]] = {}
_LOCAL = ["-m", "addrtype", "--dst-type", "LOCAL"]


@frozen
class PortMapping:
    """One entry of runtimeConfig.portMappings; `host_ip` empty means every local address."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: str

    @staticmethod
    def parse(body: Mapping[str, Any]) -> PortMapping:
        protocol = str(body.get("protocol") or "tcp").lower()
        if protocol not in ("tcp", "udp", "sctp"):
            raise InvalidConfig(f"Could not accept protocol {protocol!r} of a port mapping")
        ports = [body.get("hostPort"), body.get("containerPort")]
        if not all(isinstance(p, int) and 0 < p < 65536 for p in ports):
            raise InvalidConfig(f"Could not accept port mapping {ports[0]}:{ports[1]}: ports are 1 to 65535")
        host_ip = str(body.get("hostIP") or "")
        if host_ip and _host_address(host_ip).is_unspecified:
            host_ip = ""
        return PortMapping(int(body["hostPort"]), int(body["containerPort"]), protocol, host_ip)


def _host_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Without a zone, as Go's ParseIP: that may be any text with line ends in it, and rules are lines."""
    try:
        if "%" not in text:
            return ipaddress.ip_address(text)
        reason = "it has a zone"
    except ValueError:
        reason = "it is no IP address"
    raise InvalidConfig(f"Could not accept hostIP {text!r}: {reason}")


@frozen
class PortmapConfig:
    """What the network's configuration says, beside the mappings of the pod.

    `mark_chain` marks what is to be masqueraded: ours, or another's (externalSetMarkChain). `conditions` are
    further words of the rules that lead to the pod's chain, by IP version.
    """

    mappings: tuple[PortMapping, ...] = ()
    snat: bool = True
    masquerade_all: bool = False
    mark_chain: str = SETMARK
    conditions: Mapping[int, tuple[str, ...]] = _NONE

    @staticmethod
    def parse(config: Mapping[str, Any]) -> PortmapConfig:
        """Keys of upstream's plugin. Raises UnsupportedField, InvalidConfig."""
        if config.get("backend") not in (None, "", "iptables"):
            raise UnsupportedField("Could not accept a portmap backend other than iptables")
        if config.get("markMasqBit") not in (None, _MARK_BIT):
            raise UnsupportedField(f"Could not accept a markMasqBit other than {_MARK_BIT}")
        conditions = {4: config.get("conditionsV4") or (), 6: config.get("conditionsV6") or ()}
        for words in conditions.values():
            if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
                raise InvalidConfig(f"Could not accept conditions {words!r}: a list of iptables words")
        runtime = config.get("runtimeConfig") or {}
        wanted = [folded(m, _MAPPING_KEYS) for m in listed(runtime.get("portMappings"), "portMappings")]
        return PortmapConfig(
            mappings=tuple(PortMapping.parse(m) for m in wanted if m.get("hostPort")),
            snat=config.get("snat") is not False,
            masquerade_all=bool(config.get("masqAll")),
            mark_chain=str(config.get("externalSetMarkChain") or SETMARK),
            conditions={version: tuple(words) for version, words in conditions.items()},
        )

    def of(self, version: int) -> list[PortMapping]:
        """The mappings that an address of this IP version serves."""
        return [
            m for m in self.mappings if not m.host_ip or ipaddress.ip_address(m.host_ip).version == version
        ]

    def forget_flows(self) -> None:
        for version in (4, 6):
            forget_udp(version, {m.host_port for m in self.of(version) if m.protocol == "udp"})


class Portmap:
    """The plugin; chained behind one that gave the pod its addresses."""

    def __init__(self, iptables: Callable[[int], Iptables] = Iptables) -> None:
        self._iptables = iptables
        # The jump rules are looked for and then added; two threads must not both find them missing.
        self._lock = _thread.allocate_lock()

    def add(self, request: Request) -> Result:
        """Open the pod's host ports. Raises FirewallError; one transaction per family, so all or nothing."""
        result = request.prev_result
        if result is None:
            raise InvalidConfig("Could not map ports: prevResult is missing (portmap must be chained)")
        config = PortmapConfig.parse(request.config)
        done: list[int] = []
        try:
            for version, address in _targets(result) if config.mappings else ():
                done.append(version)
                self._open(request, version, address, config)
            config.forget_flows()
        except BaseException:
            for version in done:
                self._close(request, version)
            raise
        return result

    def _open(self, request: Request, version: int, address: str, config: PortmapConfig) -> None:
        iptables = self._iptables(version)
        rules = rules_for(request.network, request.container_id, address, config)
        if not rules:
            return
        with self._lock:
            jumps = [
                f"-A {chain} " + line(rule)
                for chain, rule in (
                    ("PREROUTING", [*_LOCAL, "-j", DNAT]),
                    ("OUTPUT", [*_LOCAL, "-j", DNAT]),
                    ("POSTROUTING", ["-j", MASQ]),
                )
                if not iptables.has_rule("nat", chain, rule)
            ]
            declared = [f":{chain_name(request.network, request.container_id)} - [0:0]", *_base(iptables)]
            iptables.restore("\n".join(["*nat", *declared, *_base_rules(), *rules, *jumps, "COMMIT", ""]))

    def delete(self, request: Request) -> None:
        """Close the ports; without any mapping in the configuration there is nothing to look for.

        Mappings that ADD would not read opened nothing. They must not keep the pod from being removed.
        """
        try:
            config = PortmapConfig.parse(request.config)
        except InvalidConfig:
            return
        if not config.mappings:
            return
        families = {v for v, _ in _targets(request.prev_result)} if request.prev_result else {4, 6}
        for version in sorted(families):
            if available(version):
                self._close(request, version)
        config.forget_flows()

    def _close(self, request: Request, version: int) -> None:
        self._drop(self._iptables(version), {chain_name(request.network, request.container_id)})

    def _drop(self, iptables: Iptables, chains: set[str]) -> None:
        with self._lock:
            words = iptables.rules("nat")
            present = chains & {w[1] for w in words if w[0] == "-N"}
            jumps = [w for w in words if w[:2] == ["-A", DNAT] and w[-1] in chains]
            if present or jumps:
                lines = [f":{chain} - [0:0]" for chain in sorted(present)]
                lines += [line(["-D", *w[1:]]) for w in jumps]
                lines += [f"-X {chain}" for chain in sorted(present)]
                iptables.restore("\n".join(["*nat", *lines, "COMMIT", ""]))

    def check(self, request: Request) -> None:
        if request.prev_result is None:
            raise InvalidConfig("Could not check: prevResult is missing")
        config = PortmapConfig.parse(request.config)
        chain = chain_name(request.network, request.container_id)
        for version, _address in _targets(request.prev_result):
            if not config.of(version):
                continue
            words = self._iptables(version).rules("nat")
            if not any(w[:2] == ["-A", DNAT] and w[-1] == chain for w in words):
                raise PluginFailure(f"Could not find the host port rules of {request.container_id}: {chain}")

    def gc(self, request: Request) -> None:
        """Drop the chains of this network's containers that are not among the valid attachments."""
        valid = {
            chain_name(request.network, str(a.get("containerID"))) for a in valid_attachments(request.config)
        }
        note = f'dnat name: "{request.network}" id: '
        for version in (4, 6):
            if not available(version):
                continue
            iptables = self._iptables(version)
            stale = {
                w[-1]
                for w in iptables.rules("nat", DNAT)
                if any(word.startswith(note) for word in w) and w[-1] not in valid
            }
            self._drop(iptables, stale)

    def status(self, request: Request) -> None:
        """Ready whenever iptables can be run; ADD says so if it cannot."""

    def tear_down(self) -> None:
        """Remove the shared chains and the jumps to them, unless another network's ports still need them.

        Call `gc` first: it removes the chains of this network's containers.
        """
        for version in (4, 6):
            if not available(version):
                continue
            iptables = self._iptables(version)
            with self._lock:
                words = iptables.rules("nat")
                chains = [w[1] for w in words if w[0] == "-N" and w[1] in _BASE]
                in_use = any(w[:2] == ["-A", DNAT] for w in words)
                jumps = [w for w in words if w[0] == "-A" and w[1] not in chains and w[-1] in _BASE]
                if chains and not in_use:
                    lines = [f":{chain} - [0:0]" for chain in chains]
                    lines += [line(["-D", *w[1:]]) for w in jumps] + [f"-X {chain}" for chain in chains]
                    iptables.restore("\n".join(["*nat", *lines, "COMMIT", ""]))


_BASE = (DNAT, SETMARK, MASQ)


def _base(iptables: Iptables) -> list[str]:
    """Declarations of the shared chains. A declaration empties a chain: CNI-HOSTPORT-DNAT, which holds the
    other pods' rules, is declared only when it does not exist."""
    declared = [f":{SETMARK} - [0:0]", f":{MASQ} - [0:0]"]
    return declared if iptables.rules("nat", DNAT) else [f":{DNAT} - [0:0]", *declared]


def _base_rules() -> list[str]:
    return [
        f'-A {SETMARK} -m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x2000/0x2000',
        f"-A {MASQ} -m mark --mark 0x2000/0x2000 -j MASQUERADE",
    ]


def chain_name(network: str, container_id: str) -> str:
    """Upstream's name: CNI-DN- and 21 hex digits of SHA-512(network + container ID)."""
    return "CNI-DN-" + hashlib.sha512(f"{network}{container_id}".encode()).hexdigest()[:21]


def rules_for(network: str, container_id: str, address: str, config: PortmapConfig) -> list[str]:
    """PURE: the restore lines that lead the mappings' host ports to `address` (with prefix length)."""
    interface = ipaddress.ip_interface(address)
    chain = chain_name(network, container_id)
    ours = config.of(interface.version)
    note = f'dnat name: "{network}" id: "{container_id}"'
    rules: list[str] = []
    for protocol in dict.fromkeys(m.protocol for m in ours):
        ports = list(dict.fromkeys(str(m.host_port) for m in ours if m.protocol == protocol))
        for start in range(0, len(ports), _PORTS_PER_RULE):
            some = ",".join(ports[start : start + _PORTS_PER_RULE])
            match = ["-p", protocol, "-m", "comment", "--comment", note, "-m", "multiport"]
            extra = config.conditions.get(interface.version, ())
            rules.append(line(["-A", DNAT, *match, "--destination-ports", some, *extra, "-j", chain]))
    host = f"[{interface.ip}]" if interface.version == 6 else str(interface.ip)
    for m in ours:
        match = ["-A", chain, "-p", m.protocol, "--dport", str(m.host_port)]
        if m.host_ip:
            match[2:2] = ["-d", m.host_ip]
        if config.snat:
            source = [] if config.masquerade_all else ["-s", str(interface.network)]
            rules.append(line([*match, *source, "-j", config.mark_chain]))
        rules.append(line([*match, "-j", "DNAT", "--to-destination", f"{host}:{m.container_port}"]))
    return rules


def _targets(result: Result) -> list[tuple[int, str]]:
    """The first address of each family inside the container."""
    found: dict[int, str] = {}
    for ip in result.ips:
        inside = ip.interface is None or (
            ip.interface < len(result.interfaces) and result.interfaces[ip.interface].sandbox
        )
        if inside:
            found.setdefault(ipaddress.ip_interface(ip.address).version, ip.address)
    return sorted(found.items())


if __name__ == "__main__":
    from cni.skeleton import main

    sys.exit(main("portmap"))
