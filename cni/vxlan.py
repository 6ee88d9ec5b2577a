"""rtnetlink messages for a VXLAN device and for its neighbours, which are told and never learnt.

The device puts frames into UDP packets. Where a frame goes is said by two permanent entries for each other
node: the neighbour (its address on the overlay → its MAC) and the forwarding entry (that MAC → the node's
own address). Layout: uapi linux/if_link.h (IFLA_VXLAN_…), linux/neighbour.h; flannel wires its nodes the
same way.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from dataclasses import dataclass

from cni.rtnetlink import (
    F_CREATE,
    F_EXCL,
    F_REPLACE,
    IFF_UP,
    IFLA_ADDRESS,
    IFLA_IFNAME,
    IFLA_LINKINFO,
    IFLA_MTU,
    INFO_DATA,
    INFO_KIND,
    RTM_NEWLINK,
    Message,
    attribute,
    attributes,
    ifinfo,
    text,
    u32,
)

RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
IFLA_VXLAN_ID, IFLA_VXLAN_LINK, IFLA_VXLAN_LOCAL, IFLA_VXLAN_LEARNING = 1, 3, 4, 7
IFLA_VXLAN_PORT, IFLA_VXLAN_LOCAL6 = 15, 17
NDA_DST, NDA_LLADDR = 1, 2
NUD_PERMANENT = 0x80
NTF_SELF = 0x02
OVERHEAD = {4: 50, 6: 70}  # bytes: outer Ethernet, IP, UDP and VXLAN headers


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent entry: `forwarding` ones say behind which node a MAC is, others what MAC an address has."""

    forwarding: bool
    address: str
    mac: str


def new_vxlan(name: str, *, vni: int, local: str, port: int, mac: str, mtu: int, link: int) -> Message:
    """A device that is up at once, sends from `local` over interface `link`, and learns nothing."""
    address = ipaddress.ip_address(local)
    body = ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += attribute(IFLA_ADDRESS, bytes.fromhex(mac.replace(":", "")))
    data = u32(IFLA_VXLAN_ID, vni) + u32(IFLA_VXLAN_LINK, link) + attribute(IFLA_VXLAN_LEARNING, b"\0")
    data += attribute(IFLA_VXLAN_LOCAL6 if address.version == 6 else IFLA_VXLAN_LOCAL, address.packed)
    data += attribute(IFLA_VXLAN_PORT, struct.pack("!H", port))
    body += attribute(IFLA_LINKINFO, text(INFO_KIND, "vxlan") + attribute(INFO_DATA, data))
    return Message(f"create VXLAN device {name}", RTM_NEWLINK, F_CREATE | F_EXCL, body)


def set_neighbour(index: int, entry: Neighbour) -> Message:
    """Add the entry, or give the one with its key (address, or MAC) the new value."""
    return Message(f"set neighbour {entry.address}", RTM_NEWNEIGH, F_CREATE | F_REPLACE, _body(index, entry))


def del_neighbour(index: int, entry: Neighbour) -> Message:
    return Message(f"remove neighbour {entry.address}", RTM_DELNEIGH, 0, _body(index, entry))


def ask_neighbours(index: int, *, forwarding: bool, family: int = socket.AF_INET) -> bytes:
    """The body of a dump (RTM_GETNEIGH); the answers are of all devices."""
    return _header(socket.AF_BRIDGE if forwarding else family, index if forwarding else 0, 0, 0)


def read_neighbour(payload: bytes, index: int) -> Neighbour | None:
    """A dumped entry, if it is a permanent one of this device."""
    family, found, state, _flags, _kind = struct.unpack_from("=BxxxiHBB", payload)
    parts = attributes(payload, 12)
    raw, mac = parts.get(NDA_DST), parts.get(NDA_LLADDR, b"")
    if found != index or not state & NUD_PERMANENT or raw is None or len(mac) != 6:
        return None
    return Neighbour(family == socket.AF_BRIDGE, str(ipaddress.ip_address(raw)), mac.hex(":"))


def _body(index: int, entry: Neighbour) -> bytes:
    address = ipaddress.ip_address(entry.address)
    family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
    header = (
        _header(socket.AF_BRIDGE, index, NUD_PERMANENT, NTF_SELF)
        if entry.forwarding
        else _header(family, index, NUD_PERMANENT, 0)
    )
    mac = bytes.fromhex(entry.mac.replace(":", ""))
    return header + attribute(NDA_DST, address.packed) + attribute(NDA_LLADDR, mac)


def _header(family: int, index: int, state: int, flags: int) -> bytes:
    return struct.pack("=BxxxiHBB", family, index, state, flags, 0)
