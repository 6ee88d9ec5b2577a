"""Which of a machine's addresses are the node's: the interface of the default route's, and why.

A VM often has a NAT interface besides the one by which the VMs reach each other, with the same address in
each (10.0.2.15 of VirtualBox and of QEMU). A node that announces it takes another's traffic. So such an
address is refused, as is one that another Node announces, with the better ones named; and the choice is never
silent: it comes with its reason, which is logged and shown by `status`.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cni.netlink import Netlink
from cni.rtnetlink import Address, Link, RouteEntry

OUR_PREFIX = "kpy"
SHARED = {"10.0.2.15": "VirtualBox and QEMU give every machine behind their NAT"}
# Interfaces of other programs' containers and virtual machines: not where nodes meet.
_FOREIGN = re.compile(r"(docker|virbr|cni|podman|lxcbr|lxdbr|flannel|cali|kube-|veth|vnet|br-[0-9a-f]{12}$)")


class NoAddress(Exception):
    """The machine has no address that others could reach, or must not announce it; says what to do."""


@dataclass(frozen=True, slots=True)
class NodeAddress:
    """The chosen address, its interface, the reason in words, and what else could have been chosen."""

    address: str
    interface: str
    reason: str
    others: tuple[tuple[str, str], ...] = ()


def choose(
    links: Sequence[Link],
    addresses: Sequence[Address],
    routes: Sequence[RouteEntry],
    wanted: str = "",
    interface: str = "",
    *,
    alone: bool = True,
    version: int = 4,
    beside: str = "",
) -> NodeAddress:
    """PURE. `wanted` (--node-ip) or `interface` (--node-interface) decides, else the default route of the IP
    version, then the interface `beside`, which has the node's other address.

    `alone`: the first node of a cluster, which may have an address that nobody else could reach, if it has
    no other. Raises NoAddress.
    """
    names = {link.index: link.name for link in links if link.up}
    everything = [(_plain(a.address), names[a.index]) for a in addresses if a.index in names]
    if wanted:
        version = 6 if ":" in wanted else 4
    usable = [(address, name) for address, name in everything if _usable(address, name, version)]
    have = listed(usable) or "none"
    if wanted:
        found = next((each for each in everything if each[0] == wanted), None)
        reason = "it was asked for (--node-ip)"
        refusal = f"--node-ip {wanted} is no address of this machine (it has: {have})"
    elif interface:
        found = next((each for each in usable if each[1] == interface), None)
        reason = f"its interface was asked for (--node-interface {interface})"
        refusal = f"--node-interface {interface} has no address, is down or is not there (there is: {have})"
    else:
        same = [route for route in routes if (":" in route.dst) == (version == 6)]
        found, reason = _by_route(usable, names, same, beside)
        refusal = "no interface has an address that pods could reach the node by (give --node-ip)"
    if found is None:
        raise NoAddress(refusal)
    address, name = found
    others = tuple(each for each in usable if each[0] != address and _better(*each))
    if address in SHARED:
        if others or not alone:
            whose = f"{address} ({name}) is what {SHARED[address]}: other nodes cannot reach this one by it"
            raise NoAddress(f"{whose} ({advice(others)})")
        reason += "; no other machine can join by it, and there is no other address"
    return NodeAddress(address, name, reason, others)


def _by_route(
    usable: Sequence[tuple[str, str]], names: Mapping[int, str], routes: Sequence[RouteEntry], beside: str
) -> tuple[tuple[str, str] | None, str]:
    everywhere = [r for r in routes if r.dst in ("0.0.0.0/0", "::/0") and r.device]
    defaults = sorted(everywhere, key=lambda r: r.metric)
    for route in defaults:
        for address, name in usable:
            if name == names.get(route.device):
                return (address, name), f"the default route leads through {name}"
    for address, name in usable:
        if name == beside:
            return (address, name), f"{name} has the node's other address"
    for address, name in sorted(usable, key=lambda each: not _better(*each)):
        return (address, name), f"there is no default route, and {name} is the first with an address"
    return None, ""


def clash(found: NodeAddress, me: str, nodes: Sequence[Mapping[str, Any]]) -> str:
    """PURE. Why Node `me` must not announce this address, or "": another Node does, and `me` does not yet."""
    announcing = [
        node["metadata"]["name"]
        for node in nodes
        for each in (node.get("status") or {}).get("addresses") or ()
        if each["type"] == "InternalIP" and each["address"] == found.address
    ]
    if not announcing or me in announcing:
        return ""
    other = announcing[0]
    return (
        f"{found.address} ({found.interface}) is announced by node {other} already, and two nodes cannot "
        f"share it ({advice(found.others)}; or if {other} is gone: kubectl delete node {other})"
    )


def advice(others: Sequence[tuple[str, str]]) -> str:
    """PURE. What to type instead."""
    if not others:
        return "this machine has no other address: give it one on a network that the nodes share"
    address, name = others[0]
    more = f"; there is also {listed(others[1:])}" if others[1:] else ""
    return f"give --node-ip {address} or --node-interface {name}{more}"


def listed(found: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{address} ({name})" for address, name in found)


def choose_each(
    links: Sequence[Link],
    addresses: Sequence[Address],
    routes: Sequence[RouteEntry],
    wanted: str = "",
    interface: str = "",
    *,
    versions: Sequence[int] = (4,),
    alone: bool = True,
) -> tuple[NodeAddress, ...]:
    """PURE. One for each of the cluster's IP versions; `wanted` may name several with commas. A machine
    without an address of the second version is a node with one address. Raises NoAddress.
    """
    known = (links, addresses, routes)
    given = [text.strip() for text in wanted.split(",") if text.strip()]
    found = [choose(*known, text, alone=alone) for text in given]
    if len({":" in one.address for one in found}) < len(found):
        raise NoAddress(f"--node-ip {wanted} has two addresses of one IP version")
    for version in versions if len(versions) > 1 or not found else ():
        if any((":" in one.address) == (version == 6) for one in found):
            continue
        try:
            beside = found[0].interface if found else ""
            found.append(choose(*known, "", interface, alone=alone, version=version, beside=beside))
        except NoAddress:
            if not found:
                raise
    return tuple(found)


def choose_node_addresses(
    wanted: str = "", interface: str = "", *, versions: Sequence[int] = (4,), alone: bool = True
) -> tuple[NodeAddress, ...]:
    """The addresses of this machine, as its network namespace is now; the first is the one that other
    programs mean. Raises NoAddress.
    """
    with Netlink() as netlink:
        routes = [*netlink.routes(), *netlink.routes(family=socket.AF_INET6)]
        known = (netlink.links(), netlink.addresses(), routes)
        return choose_each(*known, wanted, interface, versions=versions, alone=alone)


def _plain(address: str) -> str:
    return address.partition("/")[0]


def _better(address: str, interface: str) -> bool:
    return address not in SHARED and not _FOREIGN.match(interface)


def _usable(address: str, interface: str, version: int) -> bool:
    """Global, not on loopback and not on our own bridge."""
    ip = ipaddress.ip_address(address)
    if interface.startswith(OUR_PREFIX):
        return False
    return ip.version == version and not ip.is_loopback and not ip.is_link_local
