"""Which address a node announces, and which it must not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cni.rtnetlink import Address, Link, RouteEntry
from kubelet_py.node.addresses import NoAddress, NodeAddress, choose, clash

NAT = ("eth0", "10.0.2.15")
PRIVATE = ("eth1", "192.168.56.11")


def decide(*found: tuple[str, str], default: str = "", down: str = "", **asked: Any) -> NodeAddress:
    """Interfaces with one address each; the default route through the one named."""
    names = [name for name, _ in found]
    links = [
        Link(number, name, "", 1500, name != down, 0, "", 0, False, "")
        for number, name in enumerate(names, start=1)
    ]
    addresses = [Address(number, f"{ip}/24") for number, (_, ip) in enumerate(found, start=1)]
    routes = [_default_route(names.index(default) + 1)] if default else []
    return choose(links, addresses, routes, **asked)


def _default_route(device: int) -> RouteEntry:
    return RouteEntry("0.0.0.0/0", "unicast", device, "192.0.2.1", 0, 254, 0, "")


LO = ("lo", "127.0.0.1")
BRIDGE = ("kpy0", "10.244.0.1")
DOCKER = ("docker0", "172.17.0.1")


@pytest.mark.parametrize(
    ("found", "options", "address", "reason"),
    [
        ([LO, ("eth0", "192.0.2.5"), PRIVATE], {"default": "eth0"}, "192.0.2.5", "the default route leads"),
        ([LO, NAT, PRIVATE], {"default": "eth1"}, "192.168.56.11", "the default route leads through eth1"),
        ([NAT, PRIVATE], {"default": "eth0", "wanted": "192.168.56.11"}, "192.168.56.11", "(--node-ip)"),
        (
            [NAT, PRIVATE],
            {"default": "eth0", "interface": "eth1"},
            "192.168.56.11",
            "interface was asked for",
        ),
        ([LO, BRIDGE, PRIVATE], {}, "192.168.56.11", "there is no default route"),
        ([DOCKER, NAT, PRIVATE], {}, "192.168.56.11", "eth1 is the first with an address"),
        ([LO, NAT], {"default": "eth0"}, "10.0.2.15", "no other machine can join by it"),
        ([NAT, DOCKER, BRIDGE], {"default": "eth0"}, "10.0.2.15", "no other machine can join by it"),
        ([NAT, PRIVATE], {"default": "eth0", "down": "eth1"}, "10.0.2.15", "there is no other address"),
    ],
)
def test_the_choice_comes_with_its_reason(
    found: Sequence[tuple[str, str]], options: dict[str, Any], address: str, reason: str
) -> None:
    chosen = decide(*found, **options)
    assert chosen.address == address and reason in chosen.reason
    assert chosen.interface == next(name for name, ip in found if ip == address)


@pytest.mark.parametrize(
    ("found", "options", "text"),
    [
        ([LO], {}, "no interface has an address"),
        (
            [PRIVATE],
            {"wanted": "192.0.2.9"},
            "--node-ip 192.0.2.9 is no address of this machine (it has: 192.",
        ),
        (
            [PRIVATE],
            {"interface": "eth7"},
            "--node-interface eth7 has no address, is down or is not there (the",
        ),
        ([PRIVATE, LO], {"interface": "eth1", "down": "eth1"}, "is not there (there is: none)"),
        (
            [NAT, PRIVATE],
            {"default": "eth0"},
            "10.0.2.15 (eth0) is what VirtualBox and QEMU give every machine behind their NAT: other nodes "
            "cannot reach this one by it (give --node-ip 192.168.56.11 or --node-interface eth1)",
        ),
        ([NAT, PRIVATE], {"wanted": "10.0.2.15"}, "(give --node-ip 192.168.56.11 or --node-interface eth1)"),
        ([NAT, PRIVATE], {"interface": "eth0"}, "(give --node-ip 192.168.56.11 or --node-interface eth1)"),
        (
            [NAT, DOCKER, PRIVATE, ("eth2", "192.0.2.7")],
            {"default": "eth0"},
            "--node-interface eth1; there is also 192.0.2.7 (eth2))",
        ),
        (
            [NAT],
            {"default": "eth0", "alone": False},
            "this machine has no other address: give it one on a netwo",
        ),
    ],
)
def test_a_refusal_names_what_to_do(
    found: Sequence[tuple[str, str]], options: dict[str, Any], text: str
) -> None:
    with pytest.raises(NoAddress) as refused:
        decide(*found, **options)
    assert text in str(refused.value)


def node(name: str, address: str) -> dict[str, Any]:
    entries = [{"type": "InternalIP", "address": address}, {"type": "Hostname", "address": name}]
    return {"metadata": {"name": name}, "status": {"addresses": entries}}


def test_an_address_of_another_node_is_refused_unless_this_one_announces_it_too() -> None:
    mine = NodeAddress("192.0.2.5", "eth0", "", (PRIVATE[::-1],))
    others = [node("a", "192.0.2.4"), {"metadata": {"name": "new"}}]
    assert clash(mine, "me", others) == ""
    assert clash(mine, "me", [*others, node("b", "192.0.2.5")]) == (
        "192.0.2.5 (eth0) is announced by node b already, and two nodes cannot share it (give --node-ip "
        "192.168.56.11 or --node-interface eth1; or if b is gone: kubectl delete node b)"
    )
    assert clash(mine, "me", [node("me", "192.0.2.5")]) == ""
    assert clash(mine, "me", [node("b", "192.0.2.5"), node("me", "192.0.2.5")]) == "", "both did before"
    assert "node b" in clash(mine, "me", [node("b", "192.0.2.5"), node("me", "192.0.2.4")]), "it has moved"
    assert clash(NodeAddress("b", "eth0", ""), "me", [node("b", "192.0.2.5")]) == "", "a name is no address"
