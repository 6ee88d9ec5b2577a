"""How many bytes of TCP a pod hands out at a time (--pod-gso-size).

A sender's kernel cuts its stream to the MTU as late as it can: a device that cuts by itself is given pieces
of 64 kB, or more where its driver takes more and somebody has said so (gso_ipv4_max_size, Linux 6.3; "BIG
TCP"). Between pods of a node nobody cuts at all, and what a packet costs on its way (routing, connection
tracking, rules, the bridge) is paid once for each piece, so larger ones are faster. On the way out it is the
other way round: a piece larger than the interface takes is cut to the MTU by the node's processors. So pods'
pieces are as large as every interface takes that a route of the node leads by, and large where none leads
out, unless a size was asked for.

Only IPv4 counts: the size is of IPv4 packets, so an interface that IPv6 alone goes by never sees a large one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence

from cni.netlink import Netlink
from cni.rtnetlink import Link, RouteEntry
from cni.veth import GSO_LARGE, GSO_MOST, GSO_USUAL

CHOICES = "auto|BYTES"
LOOPBACK = 1
UNKNOWN = 0  # the interface of a route with several next hops


def size(text: str) -> int:
    """The value of --pod-gso-size, 0 for auto. Raises argparse.ArgumentTypeError."""
    if text == "auto":
        return 0
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not GSO_USUAL <= number <= GSO_MOST:
        allowed = f"auto nor a number from {GSO_USUAL} to {GSO_MOST}"
        raise argparse.ArgumentTypeError(f"{text!r} is neither {allowed}")
    return number


def of_node(netlink: Netlink, asked: int, *, bridge: str, wrapped: bool) -> int:
    """`chosen` for the network namespace of the socket, as it is now. Raises NetlinkError."""
    ways = {LOOPBACK} | ways_out(netlink.routes(table=None))
    return chosen(asked, [netlink.link(way) if way else None for way in ways], bridge=bridge, wrapped=wrapped)


def ways_out(routes: Iterable[RouteEntry]) -> set[int]:
    """The interfaces that packets for others leave by."""
    return {route.device or UNKNOWN for route in routes if route.kind == "unicast"}


def chosen(asked: int, links: Sequence[Link | None], *, bridge: str, wrapped: bool) -> int:
    """gsoIPv4MaxSize of the pods' network, 0 for the kernel's own.

    `links`: loopback, and what routes lead by; None for one that the kernel did not tell. `bridge`: the
    pods' own. `wrapped`: pods' packets to other nodes go into others, whose devices take 64 kB.
    """
    if asked:
        return asked
    if wrapped or any(link is None or not link.gso for link in links):
        return 0
    out = [link.gso for link in links if link is not None and not _leads_nowhere(link, bridge)]
    least = min(out, default=GSO_LARGE)
    return min(least, GSO_MOST) if least > GSO_USUAL else 0


def _leads_nowhere(link: Link, bridge: str) -> bool:
    """To this node, to its pods, or (kind dummy, which holds addresses) to nobody."""
    return link.index == LOOPBACK or link.name == bridge or link.kind == "dummy"
