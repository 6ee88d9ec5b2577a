"""Keeps the kernel's routes to other nodes' pods as the Node objects ask, and repairs what others break.

Direct: `POD_CIDR via NODE`. Overlay: `POD_CIDR via OVERLAY_ADDRESS dev kpyvx0 onlink`, and for each node
one neighbour and one forwarding entry (cni/vxlan.py). The router on the way knows no pods, so a pod's packet
to such a node's own address has to go through the overlay as well, if it is to keep the pod's address:
`from POD_CIDR lookup 75`, and in that table `NODE via OVERLAY_ADDRESS dev kpyvx0 onlink`. The overlay's outer
packets come from the node's address, and pass that table by. What the node itself sends to such pods is
from its own address (the routes' `src`), not from the overlay's.

Tunnel (tunnel.py keeps the device, --pod-routes wireguard): `POD_CIDR dev kpywg0` and, in table 75, `NODE dev
kpywg0`: the device knows by the destination which node it is for. A device that somebody takes away takes its
routes along. Until it is back, `unreachable NODE metric 4096` in table 75 keeps pods' packets to such a node
from leaving in the clear, as that of the cluster's range does for those to pods (routes.py).

A dual-stack node has one PeerRoutes for each IP version, with a device and rules of its own; IPv6 goes over
the nodes' IPv6 addresses. All routes carry our protocol number and metric 256, so that those of nodes that
are gone are found by it. The device exists only while some node needs it; its MTU is the uplink's less the
headers', and the kernel tells a pod that sends more (ICMP "fragmentation needed").
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.policy_rules import RTM_GETRULE, Rule, ask_rules, del_rule, new_rule, read_rule
from cni.rtnetlink import MAIN_TABLE, Address, Link, RouteEntry, del_route, new_address, new_route
from cni.vxlan import (
    OVERHEAD,
    RTM_GETNEIGH,
    Neighbour,
    ask_neighbours,
    del_neighbour,
    new_vxlan,
    read_neighbour,
    set_neighbour,
)
from kubelet_py.node.encryption import tunnel_peers
from kubelet_py.node.peers import Peer, overlay_address, overlay_mac, peers, range_of
from kubelet_py.node.routes import LAST_RESORT, OVERLAYS, PROTOCOL, TUNNEL
from kubelet_py.node.tunnel import Tunnel

log = logging.getLogger(__name__)

VNI, PORT = 75, 8472  # Linux' own port, as flannel's; 4789 would clash with the fabric's VXLAN
METRIC = 256
TABLE, PREFERENCE = 75, 7500  # pods' ways to nodes behind a router; before the main table's rule (32766)
LOOK_SECONDS = 30.0

Object = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Route:
    dst: str
    gateway: str
    device: int
    table: int = MAIN_TABLE
    source: str = ""


class PeerRoutes:
    """`update` after any Node's change, `look` now and then; both return at once when nothing is to do."""

    def __init__(
        self,
        *,
        me: str,
        address: str,
        mode: str = "auto",
        key: Callable[[], str] = lambda: "",
        open_netlink: Callable[[], Netlink] = Netlink,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._me = me
        self._address = address
        self.version = ipaddress.ip_address(address).version
        self._family = socket.AF_INET6 if self.version == 6 else socket.AF_INET
        self._overlay = OVERLAYS[self.version]
        self._mode = mode
        self._key = key  # the public key of our end of the tunnel, "" without one
        self._open = open_netlink
        self._clock = clock
        self._lock = threading.Lock()
        self._pod_cidr = ""
        self._peers: tuple[Peer, ...] = ()
        self._said: tuple[str, ...] = ()
        self._due = 0.0

    @property
    def neighbours(self) -> tuple[str, ...]:
        """The nodes' addresses: packets of pods reach them, and answers come back, without translation."""
        return tuple(_host(peer.address) for peer in self._peers)

    @property
    def peers(self) -> tuple[Peer, ...]:
        return self._peers

    def update(self, nodes: Iterable[Object], pod_cidr: str) -> None:
        """Learn of the nodes as they are now; the kernel is asked only when a peer has changed."""
        if not pod_cidr:
            return
        with self._lock:
            try:
                with self._open() as netlink:
                    entries = netlink.addresses()
                    connected, own = self._connected(entries), [_alone(entry) for entry in entries]
                    found, problems = peers(
                        nodes, self._me, pod_cidr, connected, self._mode, self._key(), own
                    )
                    if problems != self._said:
                        for problem in problems:
                            log.warning("Left out node reason=%s", problem)
                        self._said = problems
                    if (found, pod_cidr) == (self._peers, self._pod_cidr):
                        return
                    for peer in sorted(set(found) - set(self._peers)):
                        shown = (peer.name, peer.pod_cidr, peer.way, peer.reason)
                        log.info("Chose way node=%s pods=%s way=%s reason=%s", *shown)
                    self._peers, self._pod_cidr = found, pod_cidr
                    self._apply(netlink)
            except (NetlinkError, OSError) as error:
                log.error("Failed to set routes to other nodes err=%s retry_s=%.0f", error, LOOK_SECONDS)
                self._due = self._clock() + LOOK_SECONDS

    def look(self, *, at_once: bool = False) -> None:
        """Every half minute: make good what somebody else has changed."""
        with self._lock:
            now = self._clock()
            if not self._pod_cidr or (now < self._due and not at_once):
                return
            self._due = now + LOOK_SECONDS
            try:
                with self._open() as netlink:
                    if self._apply(netlink):
                        log.warning("Repaired routes to other nodes")
            except (NetlinkError, OSError) as error:
                log.error("Failed to repair routes to other nodes err=%s", error)

    def _connected(self, entries: Sequence[Address]) -> list[str]:
        """Prefixes of the interface that has the node's address."""
        uplink = next((e.index for e in entries if _alone(e) == self._address), None)
        return [entry.address for entry in entries if entry.index == uplink]

    def _apply(self, netlink: Netlink) -> int:
        """Bring device, neighbours and routes to what the peers ask for; says how many acts that took."""
        overlay = [peer for peer in self._peers if peer.overlay]
        acts = self._last_resorts(netlink) + self._rules(netlink)  # they hold without the tunnel's device
        device = netlink.link(self._overlay)
        if overlay:
            device, made = self._device(netlink, device)
            acts += made
        elif device is not None:
            netlink.delete_link(self._overlay)  # takes its routes and neighbours along
            device, acts = None, acts + 1
        if device is not None:
            acts += self._neighbours(netlink, device.index, overlay)
        tunnel = netlink.require(TUNNEL) if any(peer.key for peer in self._peers) else None
        if tunnel is not None:
            acts += self._own_address(netlink, tunnel.index)
        return acts + self._routes(netlink, device, tunnel)

    def _last_resorts(self, netlink: Netlink) -> int:
        wanted = {_host(peer.address) for peer in self._peers if peer.key}
        ours = (TABLE, "unreachable", LAST_RESORT, PROTOCOL)
        found = netlink.routes(table=None, family=self._family)
        present = {e.dst for e in found if (e.table, e.kind, e.metric, e.protocol) == ours}
        table, kind, metric, protocol = ours
        for dst in sorted(present - wanted):
            netlink.delete_route(dst, kind=kind, metric=metric, table=table, protocol=protocol)
        for dst in sorted(wanted - present):
            netlink.add_route(dst, kind=kind, metric=metric, table=table, protocol=protocol)
        return len(present ^ wanted)

    def _own_address(self, netlink: Netlink, index: int) -> int:
        """One of the node's range: what is masqueraded into the tunnel must come from there, or the other end
        drops it. Of IPv6 the bridge's is the next best, and taken."""
        own = f"{overlay_address(self._pod_cidr)}/32"
        if self.version == 6 or own in {entry.address for entry in netlink.addresses(index)}:
            return 0
        netlink.batch([new_address(index, own)])
        return 1

    def _device(self, netlink: Netlink, device: Link | None) -> tuple[Link, int]:
        entries = netlink.addresses()
        uplink = netlink.link(next(e.index for e in entries if _alone(e) == self._address))
        assert uplink is not None
        name, mac, mtu = self._overlay, overlay_mac(self._pod_cidr), uplink.mtu - OVERHEAD[self.version]
        fits = device is not None and (device.mac, device.mtu, device.up) == (mac, mtu, True)
        if fits and device is not None and self._has_own(entries, device.index):
            return device, 0
        if device is not None:
            netlink.delete_link(name)
        netlink.batch(
            [new_vxlan(name, vni=VNI, local=self._address, port=PORT, mac=mac, mtu=mtu, link=uplink.index)]
        )
        made = netlink.require(name)
        own = overlay_address(self._pod_cidr)
        if self.version == 4:  # the link-local one is the kernel's work
            netlink.batch([new_address(made.index, f"{own}/32")])
        log.info("Made overlay device=%s address=%s mtu=%d", name, own, mtu)
        return made, 1

    def _has_own(self, entries: Sequence[Address], index: int) -> bool:
        own = f"{overlay_address(self._pod_cidr)}/32"
        return self.version == 6 or own in {entry.address for entry in entries if entry.index == index}

    def _neighbours(self, netlink: Netlink, index: int, overlay: list[Peer]) -> int:
        wanted = {Neighbour(False, peer.overlay_address, peer.mac) for peer in overlay}
        wanted |= {Neighbour(True, peer.address, peer.mac) for peer in overlay}
        present = set()
        for forwarding in (False, True):
            question = ask_neighbours(index, forwarding=forwarding, family=self._family)
            for payload in netlink.dump(RTM_GETNEIGH, question):
                entry = read_neighbour(payload, index)
                if entry is not None and entry.forwarding == forwarding:
                    present.add(entry)
        # A node that has moved keeps its MAC: the old entry must go first, or the frames would go to both.
        for entry in sorted(present - wanted, key=str):
            netlink.batch([del_neighbour(index, entry)])
        for entry in sorted(wanted - present, key=str):
            netlink.batch([set_neighbour(index, entry)])
        return len(present ^ wanted)

    def _routes(self, netlink: Netlink, device: Link | None, tunnel: Link | None) -> int:
        index = device.index if device is not None else 0
        inside = tunnel.index if tunnel is not None else 0
        wanted: set[_Route] = set()
        for peer in self._peers:
            if peer.overlay or peer.key:
                way = ("", inside) if peer.key else (peer.overlay_address, index)
                wanted.add(_Route(peer.pod_cidr, *way, source=self._address))
                wanted.add(_Route(_host(peer.address), *way, table=TABLE))
            else:
                wanted.add(_Route(peer.pod_cidr, peer.address, 0))
        entries = [entry for entry in netlink.routes(table=None, family=self._family) if _ours(entry)]
        present = {self._seen(entry, {index, inside}): entry for entry in entries}
        kept = {(route.dst, route.table) for route in wanted}  # what stands there is replaced, not removed
        for route, entry in present.items():
            if (route.dst, route.table) not in kept:
                self._delete(netlink, entry)
        for route in sorted(wanted - set(present), key=str):
            message = new_route(
                route.dst,
                index=route.device,
                gw=route.gateway,
                metric=METRIC,
                protocol=PROTOCOL,
                table=route.table,
                source=route.source,
                onlink=bool(route.gateway and route.device),
                replace=True,
            )
            try:
                netlink.batch([message])
            except NetlinkError as error:  # the others' ways must not wait for this one's
                log.error("Failed to set route dst=%s via=%s err=%s", route.dst, route.gateway, error)
        return len(set(present) ^ wanted)

    def _rules(self, netlink: Netlink) -> int:
        hidden = any(peer.way != "direct" for peer in self._peers)
        wanted = {Rule(self._pod_cidr, TABLE, PREFERENCE, PROTOCOL)} if hidden else set()
        found = (read_rule(payload) for payload in netlink.dump(RTM_GETRULE, ask_rules(self._family)))
        present = {rule for rule in found if rule.protocol == PROTOCOL}
        netlink.batch(
            [
                *(del_rule(rule) for rule in present - wanted if rule.source),
                *(new_rule(rule) for rule in wanted - present),
            ]
        )
        return len(present ^ wanted)

    @staticmethod
    def _seen(entry: RouteEntry, ours: set[int]) -> _Route:
        """A direct route's device is the kernel's choice, and says nothing."""
        device = entry.device if entry.device in ours else 0
        return _Route(entry.dst, entry.gateway, device, entry.table, entry.source)

    @staticmethod
    def _delete(netlink: Netlink, entry: RouteEntry) -> None:
        try:
            netlink.batch(
                [
                    del_route(
                        entry.dst, index=entry.device, metric=METRIC, table=entry.table, protocol=PROTOCOL
                    )
                ]
            )
        except NetlinkError as error:
            if error.errno != errno.ESRCH:
                raise


class PeerWays:
    """The routes of a node, over each of its addresses to the others' of that IP version.

    `pod_cidr` is what the node's configuration says where its Node object has no podCIDR.
    """

    def __init__(
        self, routes: Sequence[PeerRoutes], pod_cidr: str = "", tunnel: Tunnel | None = None
    ) -> None:
        self._routes = routes
        self._tunnel = tunnel
        self._configured = {"spec": {"podCIDRs": pod_cidr.split(",")}}
        self.waiting = True  # the node's own range has not been known yet

    @property
    def neighbours(self) -> tuple[str, ...]:
        return tuple(other for routes in self._routes for other in routes.neighbours)

    def update(self, nodes: Sequence[Object], own: Object) -> None:
        for routes in self._routes:
            version = routes.version
            pod_cidr = range_of(own, version) or range_of(self._configured, version)
            self.waiting = self.waiting and not pod_cidr
            routes.update(nodes, pod_cidr)
        if self._tunnel is not None and not self.waiting:
            self._tunnel.update(tunnel_peers([routes.peers for routes in self._routes]))

    def look(self) -> None:
        anew = self._tunnel is not None and self._tunnel.look()  # first: the routes need the device
        for routes in self._routes:
            routes.look(at_once=anew)


def _alone(entry: Address) -> str:
    return entry.address.partition("/")[0]


def _host(address: str) -> str:
    return f"{address}/{128 if ':' in address else 32}"


def _ours(entry: RouteEntry) -> bool:
    return entry.protocol == PROTOCOL and entry.metric == METRIC and entry.kind == "unicast"
