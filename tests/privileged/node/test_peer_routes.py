"""Three nodes as namespaces: two on one segment, the third behind a router that knows nothing of pods."""

from __future__ import annotations

import base64
import errno
import socket
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from peers_lab import PLANS, Lab, three_nodes

from cni.bridge import ensure_bridge
from cni.netlink import Netlink
from cni.policy_rules import RTM_GETRULE, Rule, ask_rules, del_rule, read_rule
from cni.vxlan import RTM_GETNEIGH, ask_neighbours, del_neighbour, read_neighbour
from kubelet_py.node.encryption import announcement
from kubelet_py.node.peer_routes import LOOK_SECONDS, METRIC, PREFERENCE, TABLE
from kubelet_py.node.routes import PROTOCOL, TUNNEL, remove

pytestmark = pytest.mark.privileged


@pytest.fixture(params=[4, 6], ids=["ipv4", "ipv6"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with three_nodes(PLANS[request.param]) as made:
        yield made


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
    argv = ["nsenter", f"--net={lab.spaces['a'].path}", "ip", "-d", "link", "show", lab.device]
    shown = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert " nolearning " in shown, "who is where is told by Nodes, not by what arrives"


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


def test_without_the_tunnels_device_nothing_goes_to_a_node_with_a_key_in_the_clear(lab: Lab) -> None:
    """To routes any device is as good as a WireGuard device, which few kernels here have."""
    own, theirs = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
    keyed = lab.plan.node("b")
    keyed["metadata"]["annotations"] = announcement(theirs, 51820)
    routes = lab.routes("a", "wireguard", lambda: own)
    with lab.spaces["a"].netlink() as netlink:
        ensure_bridge(netlink, TUNNEL, [])
        routes.update([keyed], lab.ranges["a"])
        assert lab.ways("a") == {lab.ranges["b"]: ""}
        assert leaves(lab) == "", "into the device"
        netlink.delete_link(TUNNEL)
        assert leaves(lab) == "EHOSTUNREACH"
        lab.now += LOOK_SECONDS
        routes.look()  # in vain: the device is the tunnel's to make again
        assert leaves(lab) == "EHOSTUNREACH" and pod_rules(lab, netlink) == [lab.ranges["a"]]
        ensure_bridge(netlink, TUNNEL, [])
        lab.now += LOOK_SECONDS
        routes.look()
        assert leaves(lab) == "" and lab.ways("a") == {lab.ranges["b"]: ""}
        routes.update([], lab.ranges["a"])
        found = netlink.routes(table=None, family=lab.plan.family)
        assert not [route for route in found if route.protocol == PROTOCOL]


def leaves(lab: Lab) -> str:
    """What keeps a packet of a's pod to node b from leaving, "" if nothing does."""
    with lab.socket("a", socket.SOCK_DGRAM) as client:
        client.bind((lab.pods["a"], 0))
        try:
            client.connect((lab.addresses["b"], 9))
        except OSError as error:
            return errno.errorcode[error.errno or 0]
    return ""
