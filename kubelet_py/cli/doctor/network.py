"""Addresses, forwarding, names, and a systemd-networkd that takes the pods' interfaces. PURE.

Facts relied on: of net.ipv4.conf.{all,NAME}.rp_filter the larger counts, 1 is strict (ip-sysctl.rst);
systemd.network(5): the settings of [Match] must all fit, and a veth's Type is "ether" too.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kubelet_py.cli.doctor.finding import DEGRADED, MISSING, OK, Finding

# Of [Match]: what may keep a file from fitting a pod's veth.
_NARROW = {"name", "originalname", "macaddress", "permanentmacaddress", "path", "driver", "kind", "property"}
STUB_SOURCE = "/run/systemd/resolve/resolv.conf"


@dataclass(frozen=True, slots=True)
class NetworkFacts:
    """`address` and `reason` of the choice, or `refusal`; `others` counts the addresses besides; `known`
    whether there is a node here. `rp_filter` maps "all" and interfaces to their values.
    `resolv_conf` is the file that pods with dnsPolicy Default get,
    `stub_source` whether systemd-resolved keeps one with the real servers. `networkd` maps files to text,
    empty where systemd-networkd does not run."""

    forward: str
    sysctls_writable: bool
    rp_filter: Mapping[str, str]
    address: str
    reason: str
    refusal: str
    others: int
    known: bool
    resolv_conf: str
    servers: tuple[str, ...]
    stub_source: bool
    networkd: Mapping[str, str]


def judge(facts: NetworkFacts) -> list[Finding]:
    return [
        address(facts),
        forwarding(facts),
        rp_filter(facts),
        names(facts),
        networkd(facts.networkd),
    ]


def address(facts: NetworkFacts) -> Finding:
    purpose = "how other nodes and the API server reach this one"
    if facts.refusal:  # a node that is still to be made can be told its address
        state = MISSING if facts.known else DEGRADED
        return Finding("address", state, facts.refusal, purpose, "kubelet-py up --node-ip ADDRESS, or join")
    return Finding("address", OK, f"{facts.address}: {facts.reason}", purpose)


def forwarding(facts: NetworkFacts) -> Finding:
    purpose = "packets of pods that leave the node"
    found = f"ip_forward={facts.forward}"
    if facts.forward == "1":
        return Finding("forwarding", OK, found, purpose)
    if facts.sysctls_writable:
        return Finding("forwarding", OK, f"{found}; `up` sets it", purpose)
    mend = "sysctl -w net.ipv4.ip_forward=1 where it may be set"
    return Finding("forwarding", MISSING, f"{found}, and /proc/sys is read-only", purpose, mend)


def rp_filter(facts: NetworkFacts) -> Finding:
    """Strict drops what comes in by another interface than the answer would leave by."""
    purpose = "packets whose way back is another than their way here"
    everywhere = int(facts.rp_filter.get("all", "0"))
    strict = [
        name
        for name, value in sorted(facts.rp_filter.items())
        if name not in ("all", "default", "lo") and max(int(value), everywhere) == 1
    ]
    if not strict:
        return Finding("rp_filter", OK, "strict on no interface", purpose)
    found = f"strict on {', '.join(strict)}"
    if not facts.others:
        return Finding("rp_filter", OK, f"{found}; there is one way out only", purpose)
    found += f"; addresses besides the node's: {facts.others}"
    mend = "sysctl -w net.ipv4.conf.all.rp_filter=2 (and in /etc/sysctl.d)"
    return Finding("rp_filter", DEGRADED, found, purpose, mend)


def names(facts: NetworkFacts) -> Finding:
    """A loopback server is the host's own; in a pod that address is the pod."""
    purpose = "names in pods with dnsPolicy Default, and image registries"
    if not facts.servers:
        mend = f"write a nameserver into {facts.resolv_conf or '/etc/resolv.conf'}"
        return Finding("DNS", DEGRADED, f"no nameserver in {facts.resolv_conf or 'no file'}", purpose, mend)
    found = f"{', '.join(facts.servers)} in {facts.resolv_conf}"
    if not all(_loopback(server) for server in facts.servers):
        return Finding("DNS", OK, found, purpose)
    source = STUB_SOURCE if facts.stub_source else "A_FILE_WITH_REAL_SERVERS"
    return Finding(
        "DNS", DEGRADED, f"{found}: a loop, as that address is the pod itself inside a pod", purpose,
        f"resolvConf: {source} in a KubeletConfiguration, then kubelet-py up --kubelet-config FILE",
    )  # fmt: skip


def _loopback(server: str) -> bool:
    try:
        return ipaddress.ip_address(server.partition("%")[0]).is_loopback
    except ValueError:
        return False


def networkd(files: Mapping[str, str]) -> Finding:
    purpose = "veths that stay on the pods' bridge"
    greedy = [name for name, text in sorted(files.items()) if takes_veths(text)]
    if not greedy:
        return Finding("networkd", OK, "no rule that takes veths" if files else "not in charge", purpose)
    mend = f"add Kind=!veth to [Match] of {greedy[0]}, or match by Name=, then networkctl reload"
    return Finding("networkd", DEGRADED, f"{', '.join(greedy)} fits every veth", purpose, mend)


def takes_veths(text: str) -> bool:
    """Whether a .network file's [Match] fits interfaces of type ether whatever they are."""
    match = dict(_match_section(text.splitlines()))
    types = match.get("type", "").split()
    wide = "ether" in types or (not types and match.get("name") == "*")
    narrow = {key for key in match if key in _NARROW and match[key] != "*"}
    return wide and not narrow


def _match_section(lines: Sequence[str]) -> list[tuple[str, str]]:
    found, inside = [], False
    for line in map(str.strip, lines):
        if line.startswith("["):
            inside = line == "[Match]"
        elif inside and "=" in line and line[0] not in "#;":
            key, _, value = line.partition("=")
            found.append((key.strip().lower(), value.strip()))
    return found
