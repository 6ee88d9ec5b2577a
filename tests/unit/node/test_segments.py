"""Which size the pods' pieces of TCP get: what was asked for, else what every way out takes, else large."""

from __future__ import annotations

import argparse

import pytest

from cni.frozen import replace
from cni.rtnetlink import Link, RouteEntry
from kubelet_py.node import segments

LO = Link(1, "lo", "", 65536, True, 0, "", 0, False, "", gso=65536)
ETH0 = Link(2, "eth0", "", 1500, True, 0, "", 0, False, "", gso=65536)
LAN = replace(ETH0, index=3, name="eth1", gso=196608)
WIDE = replace(ETH0, index=4, name="eth2", gso=524280)
BRIDGE = replace(ETH0, index=5, name="kpy0", kind="bridge")
DOCKER = replace(BRIDGE, index=6, name="docker0")
DUMMY = replace(ETH0, index=7, name="addresses", kind="dummy")
VXLAN = replace(ETH0, index=8, name="kpyvx0", kind="vxlan")
OLD = [replace(link, gso=0) for link in (LO, ETH0, BRIDGE)]


@pytest.mark.parametrize(
    ("links", "size"),
    [
        ([LO], 196608),
        ([LO, BRIDGE], 196608),
        ([LO, BRIDGE, DUMMY], 196608),
        ([LO, BRIDGE, ETH0], 0),
        ([LO, BRIDGE, replace(ETH0, gso=16384)], 0),
        ([LO, BRIDGE, LAN], 196608),
        ([LO, BRIDGE, LAN, ETH0], 0),
        ([LO, BRIDGE, WIDE], 524280),
        ([LO, BRIDGE, WIDE, LAN], 196608),
        ([LO, BRIDGE, replace(WIDE, gso=1 << 20)], 524280),
        ([LO, BRIDGE, LAN, DOCKER], 0),
        ([LO, BRIDGE, LAN, VXLAN], 0),
        ([LO, BRIDGE, LAN, None], 0),
        (OLD, 0),
        (OLD[:1], 0),
    ],
    ids=[
        "no pod yet",
        "pods alone",
        "a device that holds addresses",
        "an uplink",
        "an uplink that takes less",
        "one that takes more",
        "a LAN beside the uplink",
        "one that takes still more",
        "the least of two",
        "never more than a veth takes",
        "another runtime's bridge",
        "a way to other nodes inside other packets",
        "several next hops",
        "a kernel before 6.3",
        "a kernel before 6.3, nothing but loopback",
    ],
)
def test_auto_is_what_every_way_out_takes(links: list[Link | None], size: int) -> None:
    assert segments.chosen(0, links, bridge="kpy0", wrapped=False) == size


def test_inside_other_packets_it_is_the_kernels() -> None:
    assert segments.chosen(0, [LO, BRIDGE], bridge="kpy0", wrapped=True) == 0
    assert segments.chosen(0, [LO, BRIDGE, LAN], bridge="kpy0", wrapped=True) == 0


def test_what_was_asked_for_counts_whatever_the_links_take() -> None:
    assert segments.chosen(131072, [LO, ETH0], bridge="kpy0", wrapped=True) == 131072
    assert segments.chosen(65536, [LO], bridge="kpy0", wrapped=False) == 65536
    assert segments.chosen(131072, OLD, bridge="kpy0", wrapped=False) == 131072


def route(dst: str, device: int, kind: str = "unicast", table: int = 254) -> RouteEntry:
    return RouteEntry(dst, kind, device, "", 0, table, 2, "")


def test_routes_of_every_table_lead_out_and_the_nodes_own_addresses_do_not() -> None:
    found = segments.ways_out(
        [
            route("10.244.0.0/24", 5),
            route("192.0.2.0/24", 2),
            route("10.244.1.0/24", 8, table=75),
            route("10.244.0.0/16", 0, "unreachable"),
            route("198.51.100.7/32", 7, "local", 255),
            route("198.51.100.255/32", 7, "broadcast", 255),
        ]
    )
    assert found == {2, 5, 8}
    assert segments.ways_out([route("0.0.0.0/0", 0)]) == {0}, "several next hops name no interface"


def test_a_size_is_read_and_others_are_refused() -> None:
    assert [segments.size(text) for text in ("auto", "65536", "524280")] == [0, 65536, 524280]
    for text in ("", "65535", "524281", "-1", "64k", "1e6"):
        with pytest.raises(argparse.ArgumentTypeError, match="neither auto nor a number"):
            segments.size(text)
