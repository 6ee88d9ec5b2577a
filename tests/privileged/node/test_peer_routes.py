"""Three nodes as namespaces: two on one segment, the third behind a router that knows nothing of pods."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
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
from kubelet_py.node.peer_routes import DEVICE, LOOK_SECONDS, METRIC, PREFERENCE, TABLE, PeerRoutes
from kubelet_py.node.routes import PROTOCOL, remove

pytestmark = pytest.mark.privileged

ADDRESSES = {"a": "192.0.2.10", "b": "192.0.2.11", "c": "198.51.100.12"}
RANGES = {"a": "10.244.1.0/24", "b": "10.244.2.0/24", "c": "10.244.3.0/24"}
PODS = {"a": "10.244.1.5", "b": "10.244.2.5", "c": "10.244.3.5"}


def node(name: str, cidr: str = "", address: str = "") -> dict[str, Any]:
    entry = {"type": "InternalIP", "address": address or ADDRESSES[name]}
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr or RANGES[name]},
        "status": {"addresses": [entry]},
    }


ALL = [node(name) for name in ADDRESSES]


class Lab:
    """The namespaces and what each node's agent would hold of routes; time is a number."""

    def __init__(self, spaces: dict[str, Namespace]) -> None:
        self.spaces = spaces
        self.now = 0.0

    def routes(self, name: str, mode: str = "auto") -> PeerRoutes:
        space = self.spaces[name]
        return PeerRoutes(
            me=name, address=ADDRESSES[name], mode=mode, open_netlink=space.netlink, clock=lambda: self.now
        )

    def start(self, mode: str = "auto", nodes: list[dict[str, Any]] | None = None) -> dict[str, PeerRoutes]:
        started = {name: self.routes(name, mode) for name in ADDRESSES}
        for name, routes in started.items():
            routes.update(ALL if nodes is None else nodes, RANGES[name])
        return started

    def talk(self, sender: str, receiver: str, size: int = 200_000) -> str:
        """Send bytes from a pod of one node to a pod of another; the address the receiver saw."""
        server, client = self.spaces[receiver].socket(), self.spaces[sender].socket()
        with server, client:
            server.bind((PODS[receiver], 0))
            server.listen()
            client.bind((PODS[sender], 0))
            client.connect((PODS[receiver], server.getsockname()[1]))
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

    def ways(self, name: str) -> dict[str, str]:
        """Gateway of each route to another node's pods."""
        with self.spaces[name].netlink() as netlink:
            found = [r for r in netlink.routes() if r.protocol == 75 and r.metric == METRIC]
        return {route.dst: route.gateway for route in found}


def join(router: Netlink, near: str, space: Namespace, address: str, master: int = 0) -> None:
    router.batch([new_veth(near, peer="up0", peer_netns=space.fd, master=master)])
    with space.netlink() as netlink:
        index, lo = netlink.require("up0").index, netlink.require("lo").index
        netlink.batch([set_link(lo, up=True), set_link(index, up=True), new_address(index, f"{address}/24")])
        gateway = address.rsplit(".", 1)[0] + ".1"
        netlink.batch([new_route("0.0.0.0/0", index=index, gw=gateway)])


@pytest.fixture
def lab() -> Iterator[Lab]:
    with ExitStack() as stack:
        spaces = {name: stack.enter_context(Namespace()) for name in ADDRESSES}
        middle = stack.enter_context(Namespace())
        with middle.netlink() as router:
            ensure_bridge(router, "br0", ["192.0.2.1/24"])
            master = router.require("br0").index
            join(router, "to-a", spaces["a"], ADDRESSES["a"], master)
            join(router, "to-b", spaces["b"], ADDRESSES["b"], master)
            join(router, "to-c", spaces["c"], ADDRESSES["c"])
            router.batch([new_address(router.require("to-c").index, "198.51.100.1/24")])
        for space in (middle, *spaces.values()):
            in_namespace(space.fd, lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
        for name, space in spaces.items():
            with space.netlink() as netlink:
                gateway = RANGES[name].replace(".0/", ".1/")
                ensure_bridge(netlink, "kpy0", [gateway, f"{PODS[name]}/24"])
        yield Lab(spaces)


def test_pods_reach_each_other_with_their_own_addresses(lab: Lab) -> None:
    lab.start()
    assert lab.ways("a") == {RANGES["b"]: ADDRESSES["b"], RANGES["c"]: "10.244.3.0"}
    assert lab.ways("c") == {RANGES["a"]: "10.244.1.0", RANGES["b"]: "10.244.2.0"}
    for sender in PODS:
        for receiver in PODS:
            if sender != receiver:
                assert lab.talk(sender, receiver) == PODS[sender], (sender, receiver)


def test_everything_by_the_overlay_when_asked(lab: Lab) -> None:
    lab.start("vxlan")
    assert lab.ways("a") == {RANGES["b"]: "10.244.2.0", RANGES["c"]: "10.244.3.0"}
    assert lab.talk("a", "b") == PODS["a"] and lab.talk("c", "a") == PODS["c"]
    with lab.spaces["a"].netlink() as netlink:
        assert netlink.require(DEVICE).mtu == netlink.require("up0").mtu - 50


def test_a_node_that_leaves_takes_its_way_along(lab: Lab) -> None:
    routes = lab.start()
    routes["a"].update([ALL[0], ALL[1]], RANGES["a"])
    assert lab.ways("a") == {RANGES["b"]: ADDRESSES["b"]}
    with lab.spaces["a"].netlink() as netlink:
        assert netlink.link(DEVICE) is None, "nobody needs the overlay any more"
    routes["a"].update([ALL[0]], RANGES["a"])
    assert lab.ways("a") == {}


def test_a_node_that_moves_is_followed(lab: Lab) -> None:
    """Its podCIDR stays, its address changes: nothing may go to where it was."""
    routes = lab.start("vxlan")
    elsewhere = node("c", address="198.51.100.99")
    routes["a"].update([ALL[0], ALL[1], elsewhere], RANGES["a"])
    with lab.spaces["a"].netlink() as netlink:
        index = netlink.require(DEVICE).index
        entries = forwarding(netlink, index)
    assert {entry.address for entry in entries} == {ADDRESSES["b"], "198.51.100.99"}


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
            assert netlink.delete_route(RANGES["b"], metric=METRIC)
        elif harm == "device":
            netlink.delete_link(DEVICE)
        elif harm == "neighbour":
            index = netlink.require(DEVICE).index
            netlink.batch([del_neighbour(index, forwarding(netlink, index)[0])])
        elif harm == "rule":
            netlink.batch([del_rule(Rule(RANGES["a"], TABLE, PREFERENCE, PROTOCOL))])
        else:
            netlink.add_route("10.244.77.0/24", gw=ADDRESSES["b"], metric=METRIC, protocol=75)
    lab.now += LOOK_SECONDS
    routes["a"].look()
    assert lab.ways("a") == before
    with lab.spaces["a"].netlink() as netlink:
        assert pod_rules(netlink) == [RANGES["a"]]
    assert lab.talk("a", "b") == PODS["a"] and lab.talk("a", "c") == PODS["a"]


def test_nothing_is_done_twice(lab: Lab) -> None:
    routes = lab.start()
    with lab.spaces["a"].netlink() as netlink:
        index = netlink.require(DEVICE).index
        for _ in range(3):
            lab.now += LOOK_SECONDS
            routes["a"].look()
            routes["a"].update(ALL, RANGES["a"])
        assert netlink.require(DEVICE).index == index


def test_one_node_that_cannot_be_reached_costs_the_others_nothing(lab: Lab) -> None:
    """Without the overlay the kernel refuses a gateway behind a router; the neighbour's route is set."""
    lab.start("direct")
    assert lab.ways("a") == {RANGES["b"]: ADDRESSES["b"]}
    assert lab.talk("a", "b") == PODS["a"]
    with pytest.raises(OSError):
        lab.talk("a", "c")


@pytest.mark.parametrize(("sender", "receiver"), [("a", "b"), ("a", "c"), ("c", "b")])
def test_a_packet_to_a_node_keeps_the_pods_address(lab: Lab, sender: str, receiver: str) -> None:
    """Pod to node and node to pod without translation, as the network model asks, router or not."""
    lab.start()
    server = lab.spaces[receiver].socket(socket.SOCK_DGRAM)
    client = lab.spaces[sender].socket(socket.SOCK_DGRAM)
    with server, client:
        server.bind((ADDRESSES[receiver], 0))
        client.bind((PODS[sender], 0))
        client.sendto(b"hello", server.getsockname())
        data, seen = server.recvfrom(100)
        assert (data, seen[0]) == (b"hello", PODS[sender])
        server.sendto(b"back", seen)
        assert client.recv(100) == b"back"


def test_a_node_speaks_to_pods_behind_a_router_from_its_own_address(lab: Lab) -> None:
    lab.start()
    server, client = (lab.spaces[name].socket(socket.SOCK_DGRAM) for name in ("c", "a"))
    with server, client:
        server.bind((PODS["c"], 0))
        client.sendto(b"hello", server.getsockname())
        assert server.recvfrom(100)[1][0] == ADDRESSES["a"]


def test_pods_have_no_table_of_their_own_where_nobody_is_behind_a_router(lab: Lab) -> None:
    routes = lab.start()
    with lab.spaces["a"].netlink() as netlink:
        assert pod_rules(netlink) == [RANGES["a"]]
        routes["a"].update([ALL[0], ALL[1]], RANGES["a"])
        assert pod_rules(netlink) == []
        assert [route for route in netlink.routes(table=None) if route.table == TABLE] == []
        routes["a"].update(ALL, RANGES["a"])
        assert pod_rules(netlink) == [RANGES["a"]]
        remove(netlink)
        assert pod_rules(netlink) == [] and lab.ways("a") == {}


def pod_rules(netlink: Netlink) -> list[str]:
    found = [read_rule(payload) for payload in netlink.dump(RTM_GETRULE, ask_rules(socket.AF_INET))]
    return [rule.source for rule in found if rule.protocol == PROTOCOL]
