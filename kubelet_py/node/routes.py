"""Routes that keep cluster packets inside the node, and the kernel switches that routing pods needs.

A packet for a pod or Service address that nobody here knows (a rule is missing, a peer is gone) must not
follow the default route out of the uplink. Three routes of last resort see to that:

    unreachable <cluster CIDR>  metric 4096   the bridge's own /24 is more specific and wins
    <service CIDR> dev <bridge> metric 512    see below; dev lo on networks that have no bridge of ours
    unreachable <service CIDR>  metric 4096   for the time when there is no bridge

The same for the IPv6 ranges of a dual-stack cluster, but for lo: the kernel takes an IPv6 route through it
for an unreachable one. There such a connect() goes by the default route.

The Service range cannot simply be unreachable: connect() of a process on the node looks its route up
*before* netfilter's OUTPUT chain rewrites the destination, and would fail with EHOSTUNREACH. With a route
to the bridge the lookup succeeds, the rewritten packet is routed anew, and one that no rule matched ends
in an unanswered ARP request among the pods; on lo the kernel discards it, since its route is no local one.

A pod's unmatched packet would thus leave by the interface it came in by. The kernel answers that with an
ICMP redirect, whose rate limit then swallows the "port unreachable" of the proxy's REJECT; so redirects
are switched off for the bridge (that needs conf/all off, too: the kernel takes the OR of both. All other
interfaces keep their own value).

All our routes carry protocol number 75, so that they are removed by name, never by pattern.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from cni.netlink import Netlink
from cni.policy_rules import RTM_GETRULE, ask_rules, del_rule, read_rule
from kubeclient.ranges import read_ranges
from kubelet_py.node import modules

log = logging.getLogger(__name__)

PROTOCOL = 75
LAST_RESORT = 4096
TO_BRIDGE = 512
OVERLAYS = {4: "kpyvx0", 6: "kpyvx6"}  # the VXLAN devices to nodes behind a router (peer_routes.py)
TUNNEL = "kpywg0"  # the WireGuard device to nodes that have a key (tunnel.py)
_LOOPBACK = 1  # lo's index in every network namespace

_FORWARD = "net/ipv4/ip_forward"
_BRIDGE_CALL = "net/bridge/bridge-nf-call-iptables"
_SEND_REDIRECTS = "net/ipv4/conf/all/send_redirects"
_FORWARD_6 = "net/ipv6/conf/all/forwarding"
_BRIDGE_CALL_6 = "net/bridge/bridge-nf-call-ip6tables"
_CONF_6 = "net/ipv6/conf"
# Switching ip_forward makes the kernel flip this one too (inet_forward_change), so it is kept as well.
_REDIRECTS = "net/ipv4/conf/all/accept_redirects"


def ensure(
    netlink: Netlink,
    *,
    bridge: str,
    pod_cidr: str,
    cluster_cidr: str,
    service_cidr: str,
    proc_sys: Path = Path("/proc/sys"),
) -> None:
    """Put the routes in place; those already there stay untouched. Raises NetlinkError.

    Each is a prefix, or two with a comma. `pod_cidr` gets a route of its own only when it lies outside
    `cluster_cidr`.
    """
    link = netlink.link(bridge)
    services = [str(network) for network in read_ranges(service_cidr)]
    if link is None:
        services = [prefix for prefix in services if ":" not in prefix]
    for prefix in [*_of_pods(pod_cidr, cluster_cidr), *services]:
        netlink.add_route(prefix, kind="unreachable", metric=LAST_RESORT, protocol=PROTOCOL)
    for prefix in services:
        if link is not None and link.up:
            # From a time without the bridge; of two routes with one metric the older would win.
            if ":" not in prefix:
                netlink.delete_route(prefix, dev=_LOOPBACK, metric=TO_BRIDGE, protocol=PROTOCOL)
            netlink.add_route(prefix, dev=link.index, metric=TO_BRIDGE, protocol=PROTOCOL)
        elif link is None:
            netlink.add_route(prefix, dev=_LOOPBACK, metric=TO_BRIDGE, protocol=PROTOCOL)
    if link is not None and link.up:
        switch = proc_sys / f"net/ipv4/conf/{bridge}/send_redirects"
        if switch.read_text().strip() != "0":
            switch.write_text("0")


def remove(netlink: Netlink) -> int:
    """Delete every route and rule with our protocol number; says how many routes there were."""
    removed = 0
    ours = [r for f in (socket.AF_INET, socket.AF_INET6) for r in netlink.routes(table=None, family=f)]
    for route in ours:
        if route.protocol == PROTOCOL:
            removed += netlink.delete_route(
                route.dst,
                dev=route.device or None,
                kind=route.kind,
                metric=route.metric,
                table=route.table,
                protocol=PROTOCOL,
            )
    for family in (socket.AF_INET, socket.AF_INET6):
        rules = [read_rule(payload) for payload in netlink.dump(RTM_GETRULE, ask_rules(family))]
        netlink.batch([del_rule(rule) for rule in rules if rule.protocol == PROTOCOL and rule.source])
    return removed


def prepare_kernel(
    state: Path,
    *,
    six: bool = False,
    proc_sys: Path = Path("/proc/sys"),
    load: Callable[[str], str | None] | None = None,
) -> list[str]:
    """Let the kernel forward packets and show bridged ones to iptables; remember the old values in `state`.
    With `six` those of IPv6, too.

    Answers what could not be had, one sentence each (for `doctor` and a node condition). A pod's packet to
    a Service whose endpoint sits on the same bridge comes back through the bridge alone: without
    br_netfilter the reply is not translated back and the connection hangs.
    """
    problems: list[str] = []
    if not (proc_sys / _BRIDGE_CALL).exists():
        problem = (load or modules.load)("br_netfilter")
        if not (proc_sys / _BRIDGE_CALL).exists():
            problems.append(
                f"Could not load br_netfilter: {problem or 'not visible'} (modprobe br_netfilter)"
            )
    old = _read_state(state)
    switches = ((_FORWARD, "1"), (_BRIDGE_CALL, "1"), (_SEND_REDIRECTS, "0"))
    for name, value in [*switches, *(_switches_6(proc_sys) if six else ())]:
        switch = proc_sys / name
        if not switch.exists() or switch.read_text().strip() == value:
            continue
        for kept in (name, *_changed_along(name, proc_sys)):
            if (proc_sys / kept).exists():
                old.setdefault(kept, (proc_sys / kept).read_text().strip())
        _write_state(state, old)
        try:
            switch.write_text(value)
        except OSError as error:
            problems.append(
                f"Could not set {name.replace('/', '.')}: {error.strerror} (is /proc/sys writable?)"
            )
        else:
            log.info("Set sysctl name=%s value=%s", name.replace("/", "."), value)
    return problems


def _switches_6(proc_sys: Path) -> list[tuple[str, str]]:
    """A host that forwards ignores router advertisements, and would lose the default route that it has of
    them; 2 says that it takes them all the same.
    """
    if (proc_sys / _FORWARD_6).exists() and (proc_sys / _FORWARD_6).read_text().strip() == "1":
        return [(_BRIDGE_CALL_6, "1")]
    interfaces = {path.name for path in (proc_sys / _CONF_6).glob("*")} - {"all", "default", "lo"}
    listening = [name for name in sorted(interfaces) if _accepts(proc_sys, name)]
    advertised = [(f"{_CONF_6}/{name}/accept_ra", "2") for name in listening]
    return [*advertised, (_FORWARD_6, "1"), (_BRIDGE_CALL_6, "1")]


def _accepts(proc_sys: Path, interface: str) -> bool:
    return (proc_sys / _CONF_6 / interface / "accept_ra").read_text().strip() == "1"


def _changed_along(name: str, proc_sys: Path) -> list[str]:
    """What the kernel changes together with a switch, to be put back after it."""
    if name == _FORWARD:
        return [_REDIRECTS]
    if name == _FORWARD_6:
        paths = sorted((proc_sys / _CONF_6).glob("*/forwarding"))
        return [str(path.relative_to(proc_sys)) for path in paths if path.parent.name != "all"]
    return []


def restore_kernel(state: Path, *, proc_sys: Path = Path("/proc/sys")) -> None:
    """Give every switch that `prepare_kernel` turned its old value back, and forget."""
    for name, value in _read_state(state).items():
        switch = proc_sys / name
        if switch.exists() and switch.read_text().strip() != value:
            switch.write_text(value)
    state.unlink(missing_ok=True)


def restore(state: Path, *, bridge: str) -> None:
    """Everything back, for `down`: our routes, the bridge (if it is one), the kernel's switches."""
    with Netlink() as netlink:
        remove(netlink)
        for device in (*OVERLAYS.values(), TUNNEL):
            netlink.delete_link(device)
        link = netlink.link(bridge)
        if link is not None and link.kind == "bridge":
            netlink.delete_link(bridge)
    restore_kernel(state)


def _of_pods(pod_cidr: str, cluster_cidr: str) -> Sequence[str]:
    cluster = read_ranges(cluster_cidr)
    outside = [
        pods
        for pods in read_ranges(pod_cidr)
        if not any(whole.version == pods.version and pods.subnet_of(whole) for whole in cluster)  # type: ignore[arg-type]
    ]
    return [str(network) for network in (*cluster, *outside)]


def _read_state(state: Path) -> dict[str, str]:
    """Nothing, too, where a power cut has left the file empty: the kernel then has its own values again."""
    try:
        return dict(json.loads(state.read_text()))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        log.warning("Forgot the switches' values from before file=%s error=%s", state, error)
        return {}


def _write_state(state: Path, values: dict[str, str]) -> None:
    state.parent.mkdir(parents=True, exist_ok=True)
    fresh = state.with_name(state.name + ".new")
    fresh.write_text(json.dumps(values))
    fresh.replace(state)
