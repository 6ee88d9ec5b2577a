"""Three nodes as namespaces: two on one segment, the third behind a router that knows nothing of pods."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from network_lab import Namespace

from cni.bridge import ensure_bridge
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import new_address, new_route, new_veth, set_link
from kubelet_py.node.peer_routes import METRIC, PeerRoutes
from kubelet_py.node.peers import overlay_address
from kubelet_py.node.routes import OVERLAYS


@dataclass(frozen=True)
class Plan:
    """Addresses of one IP version: the nodes' own, their pods' ranges, a pod on each, the router's."""

    addresses: Mapping[str, str]
    ranges: Mapping[str, str]
    pods: Mapping[str, str]
    router: tuple[str, str]
    length: int
    family: int

    def node(self, name: str, address: str = "") -> dict[str, Any]:
        entry = {"type": "InternalIP", "address": address or self.addresses[name]}
        return {
            "metadata": {"name": name},
            "spec": {"podCIDRs": [self.ranges[name]]},
            "status": {"addresses": [entry]},
        }

    @property
    def nodes(self) -> list[dict[str, Any]]:
        return [self.node(name) for name in self.addresses]


PLANS = {
    4: Plan(
        {"a": "192.0.2.10", "b": "192.0.2.11", "c": "198.51.100.12"},
        {"a": "10.244.1.0/24", "b": "10.244.2.0/24", "c": "10.244.3.0/24"},
        {"a": "10.244.1.5", "b": "10.244.2.5", "c": "10.244.3.5"},
        ("192.0.2.1", "198.51.100.1"),
        24,
        socket.AF_INET,
    ),
    6: Plan(
        {"a": "2001:db8:1::10", "b": "2001:db8:1::11", "c": "2001:db8:2::12"},
        {"a": "fd00:244:0:1::/64", "b": "fd00:244:0:2::/64", "c": "fd00:244:0:3::/64"},
        {"a": "fd00:244:0:1::5", "b": "fd00:244:0:2::5", "c": "fd00:244:0:3::5"},
        ("2001:db8:1::1", "2001:db8:2::1"),
        64,
        socket.AF_INET6,
    ),
}


class Lab:
    """The namespaces and what each node's agent would hold of routes; time is a number."""

    def __init__(self, spaces: dict[str, Namespace], plan: Plan, middle: Namespace) -> None:
        self.spaces, self.plan, self.middle = spaces, plan, middle
        self.addresses, self.ranges, self.pods = plan.addresses, plan.ranges, plan.pods
        self.device = OVERLAYS[4 if plan.family == socket.AF_INET else 6]
        self.now = 0.0

    def routes(
        self, name: str, mode: str = "auto", key: Callable[[], str] = lambda: ""
    ) -> PeerRoutes:
        space = self.spaces[name]
        return PeerRoutes(
            me=name,
            address=self.addresses[name],
            mode=mode,
            key=key,
            open_netlink=space.netlink,
            clock=lambda: self.now,
        )

    def start(self, mode: str = "auto", nodes: list[dict[str, Any]] | None = None) -> dict[str, PeerRoutes]:
        started = {name: self.routes(name, mode) for name in self.addresses}
        for name, routes in started.items():
            routes.update(self.plan.nodes if nodes is None else nodes, self.ranges[name])
        return started

    def socket(self, name: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
        return self.spaces[name].socket(kind, self.plan.family)

    def talk(self, sender: str, receiver: str, size: int = 200_000) -> str:
        """Send bytes from a pod of one node to a pod of another; the address the receiver saw."""
        server, client = self.socket(receiver), self.socket(sender)
        with server, client:
            server.bind((self.pods[receiver], 0))
            server.listen()
            client.bind((self.pods[sender], 0))
            client.connect((self.pods[receiver], server.getsockname()[1]))
            accepted, peer = server.accept()
            with accepted:
                accepted.settimeout(5)
                sent, seen = 0, 0
                client.setblocking(False)
                while seen < size:
                    try:
                        sent += client.send(b"x" * min(65536, size - sent)) if sent < size else 0
                    except BlockingIOError:
                        pass
                    seen += len(accepted.recv(65536))
            return str(peer[0])

    def overlay(self, name: str) -> str:
        return overlay_address(self.ranges[name])

    def ways(self, name: str) -> dict[str, str]:
        """Gateway of each route to another node's pods."""
        with self.spaces[name].netlink() as netlink:
            routes = netlink.routes(family=self.plan.family)
        found = [r for r in routes if r.protocol == 75 and r.metric == METRIC]
        return {route.dst: route.gateway for route in found}


def join(router: Netlink, near: str, space: Namespace, address: str, gateway: str, master: int = 0) -> None:
    router.batch([new_veth(near, peer="up0", peer_netns=space.fd, master=master)])
    everywhere, length = ("::/0", 64) if ":" in address else ("0.0.0.0/0", 24)
    with space.netlink() as netlink:
        index, lo = netlink.require("up0").index, netlink.require("lo").index
        own = new_address(index, f"{address}/{length}")
        netlink.batch([set_link(lo, up=True), set_link(index, up=True), own])
        netlink.batch([new_route(everywhere, index=index, gw=gateway)])


def forwarding_on() -> None:
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")


@contextmanager
def three_nodes(plan: Plan) -> Iterator[Lab]:
    near, far = plan.router
    with ExitStack() as stack:
        spaces = {name: stack.enter_context(Namespace()) for name in plan.addresses}
        middle = stack.enter_context(Namespace())
        with middle.netlink() as router:
            ensure_bridge(router, "br0", [f"{near}/{plan.length}"])
            master = router.require("br0").index
            join(router, "to-a", spaces["a"], plan.addresses["a"], near, master)
            join(router, "to-b", spaces["b"], plan.addresses["b"], near, master)
            join(router, "to-c", spaces["c"], plan.addresses["c"], far)
            router.batch([new_address(router.require("to-c").index, f"{far}/{plan.length}")])
        for space in (middle, *spaces.values()):
            in_namespace(space.fd, forwarding_on)
        for name, space in spaces.items():
            with space.netlink() as netlink:
                gateway = str(ipaddress.ip_network(plan.ranges[name])[1])
                ensure_bridge(netlink, "kpy0", [f"{gateway}/{plan.length}"])
                bridge = netlink.require("kpy0").index
                netlink.batch([new_address(bridge, f"{plan.pods[name]}/{plan.length}")])
        yield Lab(spaces, plan, middle)
