from __future__ import annotations

import pytest

from cni.rtnetlink import Address, Link, RouteEntry
from kubelet_py.node.addresses import NoAddress, choose_each

NAT, LAN, LO, BRIDGE, DOWN = 2, 3, 1, 4, 5
NAMES = {LO: "lo", NAT: "eth0", LAN: "eth1", BRIDGE: "kpy0", DOWN: "eth2"}
LINKS = [Link(i, name, "", 1500, i != DOWN, 0, "", 0, False, "") for i, name in NAMES.items()]
ADDRESSES = [
    Address(LO, "127.0.0.1/8"),
    Address(LO, "::1/128"),
    Address(BRIDGE, "10.244.0.1/24"),
    Address(BRIDGE, "fd00:244::1/64"),
    Address(DOWN, "198.51.100.9/24"),
    Address(NAT, "198.51.100.15/24"),
    Address(LAN, "192.0.2.10/24"),
    Address(LAN, "fe80::1/64"),
    Address(LAN, "2001:db8::10/64"),
]


def default(device: int, version: int = 4, metric: int = 0) -> RouteEntry:
    return RouteEntry("::/0" if version == 6 else "0.0.0.0/0", "unicast", device, "gw", metric, 254, 3, "")


def chosen(
    *routes: RouteEntry,
    wanted: str = "",
    versions: tuple[int, ...] = (4,),
    addresses: list[Address] = ADDRESSES,
) -> list[str]:
    return [one.address for one in choose_each(LINKS, addresses, routes, wanted, versions=versions)]


def test_the_default_routes_interface_decides() -> None:
    assert chosen(default(LAN, metric=1), default(NAT, metric=100)) == ["192.0.2.10"]
    assert chosen(default(NAT)) == ["198.51.100.15"]
    assert choose_each(LINKS, ADDRESSES, [default(LAN)])[0].reason == "the default route leads through eth1"


def test_a_dual_stack_node_has_one_of_each_version_in_the_clusters_order() -> None:
    both = ["192.0.2.10", "2001:db8::10"]
    assert chosen(default(LAN), default(LAN, 6), versions=(4, 6)) == both
    assert chosen(default(LAN), default(LAN, 6), versions=(6, 4)) == both[::-1]


def test_without_a_default_route_the_other_address_is_the_same_interfaces() -> None:
    more = [Address(NAT, "2001:db8:9::9/64"), *ADDRESSES]
    assert chosen(default(LAN), versions=(4, 6), addresses=more) == ["192.0.2.10", "2001:db8::10"]
    found = choose_each(LINKS, more, [default(LAN)], versions=(4, 6))
    assert found[1].reason == "eth1 has the node's other address"


def test_a_machine_without_an_address_of_the_second_version_has_one() -> None:
    plain = [address for address in ADDRESSES if "2001" not in address.address]
    assert chosen(default(LAN), versions=(4, 6), addresses=plain) == ["192.0.2.10"]
    with pytest.raises(NoAddress, match="give --node-ip"):
        chosen(versions=(6,), addresses=plain)


def test_what_was_asked_for_is_taken_and_completed() -> None:
    assert chosen(default(LAN), wanted="198.51.100.15") == ["198.51.100.15"]
    assert chosen(default(LAN), wanted="2001:db8::10") == ["2001:db8::10"]
    assert chosen(default(NAT), wanted="192.0.2.10", versions=(4, 6)) == ["192.0.2.10", "2001:db8::10"]
    assert chosen(wanted="2001:db8::10,198.51.100.15", versions=(4, 6)) == ["2001:db8::10", "198.51.100.15"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ("203.0.113.1", "--node-ip 203.0.113.1 is no address of this machine"),
        ("192.0.2.10,nonsense", "--node-ip nonsense is no address of this machine"),
        ("192.0.2.10,198.51.100.15", "two addresses of one IP version"),
    ],
)
def test_what_cannot_be_had_is_refused(wanted: str, said: str) -> None:
    with pytest.raises(NoAddress, match=said):
        chosen(default(LAN), wanted=wanted, versions=(4, 6))
