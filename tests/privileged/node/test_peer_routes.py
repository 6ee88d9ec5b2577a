"""Three nodes as namespaces: two on one segment, the third behind a router that knows nothing of pods."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from network_lab import Namespace

from cni.bridge import ensure_bridge
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.policy_rules import RTM_GETRULE, Rule, ask_rules, del_rule, read_rule
from cni.rtnetlink import new_address, new_route, new_veth, set_link
from cni.vxlan import RTM_GETNEIGH, ask_neighbours, del_neighbour, read_neighbour
from kubelet_py.node.peer_routes import LOOK_SECONDS, METRIC, PREFERENCE, TABLE, PeerRoutes
from kubelet_py.node.peers import overlay_address
from kubelet_py.node.routes import OVERLAYS, PROTOCOL, remove

pytestmark = pytest.mark.privileged



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

    def __init__(self, spaces: dict[str, Namespace], plan: Plan) -> None:
        self.spaces, self.plan = spaces, plan
        self.addresses, self.ranges, self.pods = plan.addresses, plan.ranges, plan.pods
        self.device = OVERLAYS[4 if plan.family == socket.AF_INET else 6]
        self.now = 0.0

    def routes(self, name: str, mode: str = "auto") -> PeerRoutes:
        space = self.spaces[name]
        return PeerRoutes(
            me=name,
            address=self.addresses[name],
            mode=mode,
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


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    plan = PLANS[request.param]
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
        yield Lab(spaces, plan)


def test_pods_reach_each_other_with_their_own_addresses(lab: Lab) -> None:
    lab.start()
    assert lab.ways("a") == {lab.ranges["b"]: lab.addresses["b"], lab.ranges["c"]: lab.overlay("c")}
    assert lab.ways("c") == {lab.ranges["a"]: lab.overlay("a"), lab.ranges["b"]: lab.overlay("b")}
    for sender in lab.pods:
        for receiver in lab.pods:
            if sender != receiver:
                assert lab.talk(sender, receiver) == lab.pods[sender], (sender, receiver)


def test_everything_by_the_overlay_when_asked(lab: Lab) -> None:
    lab.start("vxlan")
    assert lab.ways("a") == {lab.ranges["b"]: lab.overlay("b"), lab.ranges["c"]: lab.overlay("c")}
    assert lab.talk("a", "b") == lab.pods["a"] and lab.talk("c", "a") == lab.pods["c"]
    with lab.spaces["a"].netlink() as netlink:
        assert netlink.require(lab.device).mtu == netlink.require("up0").mtu - (
            70 if lab.plan.family == socket.AF_INET6 else 50
        )


def test_a_node_that_leaves_takes_its_way_along(lab: Lab) -> None:
    routes = lab.start()
    routes["a"].update([lab.plan.nodes[0], lab.plan.nodes[1]], lab.ranges["a"])
    assert lab.ways("a") == {lab.ranges["b"]: lab.addresses["b"]}
    with lab.spaces["a"].netlink() as netlink:
        assert netlink.link(lab.device) is None, "nobody needs the overlay any more"
    routes["a"].update([lab.plan.nodes[0]], lab.ranges["a"])
    assert lab.ways("a") == {}


def test_a_node_that_moves_is_followed(lab: Lab) -> None:
    """Its podCIDR stays, its address changes: nothing may go to where it was."""
    routes = lab.start("vxlan")
    moved = lab.addresses["c"] + "9"
    elsewhere = lab.plan.node("c", address=moved)
    routes["a"].update([lab.plan.nodes[0], lab.plan.nodes[1], elsewhere], lab.ranges["a"])
    with lab.spaces["a"].netlink() as netlink:
        index = netlink.require(lab.device).index
        entries = forwarding(netlink, index)
    assert {entry.address for entry in entries} == {lab.addresses["b"], moved}


def forwarding(netlink: Netlink, index: int) -> list[Any]:
    payloads = netlink.dump(RTM_GETNEIGH, ask_neighbours(index, forwarding=True))
    found = [read_neighbour(payload, index) for payload in payloads]
    return [entry for entry in found if entry is not None and entry.forwarding]


@pytest.mark.parametrize("harm", ["route", "device", "neighbour", "rule", "foreign"])
def test_what_others_break_is_repaired(lab: Lab, harm: str) -> None:
    routes = lab.start()
    before = lab.ways("a")
    with lab.spaces["a"].netlink() as netlink:
        if harm == "route":
            assert netlink.delete_route(lab.ranges["b"], metric=METRIC)
        elif harm == "device":
            netlink.delete_link(lab.device)
        elif harm == "neighbour":
            index = netlink.require(lab.device).index
            netlink.batch([del_neighbour(index, forwarding(netlink, index)[0])])
        elif harm == "rule":
            netlink.batch([del_rule(Rule(lab.ranges["a"], TABLE, PREFERENCE, PROTOCOL))])
        else:
            stray = "10.244.77.0/24" if lab.plan.length == 24 else "fd00:244:0:77::/64"
            netlink.add_route(stray, gw=lab.addresses["b"], metric=METRIC, protocol=75)
    lab.now += LOOK_SECONDS
    routes["a"].look()
    assert lab.ways("a") == before
    with lab.spaces["a"].netlink() as netlink:
        assert pod_rules(lab, netlink) == [lab.ranges["a"]]
    assert lab.talk("a", "b") == lab.pods["a"] and lab.talk("a", "c") == lab.pods["a"]


def test_nothing_is_done_twice(lab: Lab) -> None:
    routes = lab.start()
    with lab.spaces["a"].netlink() as netlink:
        index = netlink.require(lab.device).index
        for _ in range(3):
            lab.now += LOOK_SECONDS
            routes["a"].look()
            routes["a"].update(lab.plan.nodes, lab.ranges["a"])
        assert netlink.require(lab.device).index == index


def test_one_node_that_cannot_be_reached_costs_the_others_nothing(lab: Lab) -> None:
    """Without the overlay the kernel refuses a gateway behind a router; the neighbour's route is set."""
    lab.start("direct")
    assert lab.ways("a") == {lab.ranges["b"]: lab.addresses["b"]}
    assert lab.talk("a", "b") == lab.pods["a"]
    with pytest.raises(OSError):
        lab.talk("a", "c")


@pytest.mark.parametrize(("sender", "receiver"), [("a", "b"), ("a", "c"), ("c", "b")])
def test_a_packet_to_a_node_keeps_the_pods_address(lab: Lab, sender: str, receiver: str) -> None:
    """Pod to node and node to pod without translation, as the network model asks, router or not."""
    lab.start()
    server = lab.socket(receiver, socket.SOCK_DGRAM)
    client = lab.socket(sender, socket.SOCK_DGRAM)
    with server, client:
        server.bind((lab.addresses[receiver], 0))
        client.bind((lab.pods[sender], 0))
        client.sendto(b"hello", server.getsockname())
        data, seen = server.recvfrom(100)
        assert (data, seen[0]) == (b"hello", lab.pods[sender])
        server.sendto(b"back", seen)
        assert client.recv(100) == b"back"


def test_a_node_speaks_to_pods_behind_a_router_from_its_own_address(lab: Lab) -> None:
    lab.start()
    server, client = (lab.socket(name, socket.SOCK_DGRAM) for name in ("c", "a"))
    with server, client:
        server.bind((lab.pods["c"], 0))
        client.sendto(b"hello", server.getsockname())
        assert server.recvfrom(100)[1][0] == lab.addresses["a"]


def test_pods_have_no_table_of_their_own_where_nobody_is_behind_a_router(lab: Lab) -> None:
    routes = lab.start()
    with lab.spaces["a"].netlink() as netlink:
        assert pod_rules(lab, netlink) == [lab.ranges["a"]]
        routes["a"].update([lab.plan.nodes[0], lab.plan.nodes[1]], lab.ranges["a"])
        assert pod_rules(lab, netlink) == []
        found = netlink.routes(table=None, family=lab.plan.family)
        assert [route for route in found if route.table == TABLE] == []
        routes["a"].update(lab.plan.nodes, lab.ranges["a"])
        assert pod_rules(lab, netlink) == [lab.ranges["a"]]
        remove(netlink)
        assert pod_rules(lab, netlink) == [] and lab.ways("a") == {}


def pod_rules(lab: Lab, netlink: Netlink) -> list[str]:
    found = [read_rule(payload) for payload in netlink.dump(RTM_GETRULE, ask_rules(lab.plan.family))]
    return [rule.source for rule in found if rule.protocol == PROTOCOL]
