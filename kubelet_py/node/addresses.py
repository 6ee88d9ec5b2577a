"""Which of a machine's addresses is the node's: the interface of the default route, and why.

A VM often has a NAT interface that all VMs share besides the one they reach each other by (Vagrant's
10.0.2.15); so the choice is never silent: it comes with its reason, which is logged and shown by `status`.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cni.netlink import Netlink
from cni.rtnetlink import Address, Link, RouteEntry

OUR_PREFIX = "kpy"


class NoAddress(Exception):
    """The machine has no address that others could reach; the message says what to do."""


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """The chosen address, its interface, and the reason in words."""

    address: str
    interface: str
    reason: str


def choose(
    links: Sequence[Link], addresses: Sequence[Address], routes: Sequence[RouteEntry], wanted: str = ""
) -> NodeAddress:
    """PURE. `wanted` (--node-ip) must be an address of this machine; else the default route decides."""
    names = {link.index: link.name for link in links if link.up}
    usable = [a for a in addresses if a.index in names and _usable(a.address, names[a.index])]
    if wanted:
        for entry in addresses:
            if _plain(entry.address) == wanted and entry.index in names:
                return NodeAddress(wanted, names[entry.index], "it was asked for (--node-ip)")
        have = ", ".join(f"{_plain(a.address)} ({names[a.index]})" for a in usable) or "none"
        raise NoAddress(f"--node-ip {wanted} is no address of this machine (it has: {have})")
    defaults = sorted((r for r in routes if r.dst == "0.0.0.0/0" and r.device), key=lambda r: r.metric)
    for route in defaults:
        for entry in usable:
            if entry.index == route.device:
                name = names[entry.index]
                return NodeAddress(_plain(entry.address), name, f"the default route leads through {name}")
    for entry in usable:
        name = names[entry.index]
        return NodeAddress(
            _plain(entry.address), name, f"there is no default route, and {name} is the first with an address"
        )
    raise NoAddress("no interface has an address that pods could reach the node by (give --node-ip)")


def choose_node_address(wanted: str = "") -> NodeAddress:
    """The address of this machine, as its network namespace is now. Raises NoAddress."""
    with Netlink() as netlink:
        return choose(netlink.links(), netlink.addresses(), netlink.routes(), wanted)


def _plain(address: str) -> str:
    return address.partition("/")[0]


def _usable(address: str, interface: str) -> bool:
    """Global IPv4, not on loopback and not on our own bridge."""
    ip = ipaddress.ip_address(_plain(address))
    if interface.startswith(OUR_PREFIX):
        return False
    return ip.version == 4 and not ip.is_loopback and not ip.is_link_local
