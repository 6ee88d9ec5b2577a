"""rtnetlink messages as bytes: what is asked of the kernel, and what it answers, as values.

Nothing here opens a socket: `netlink` sends these. Layout: a header of 16 bytes, a fixed part for the kind of
object, then attributes (length, type, value), nested where they say so, each padded to four bytes
(rtnetlink(7), uapi linux/rtnetlink.h, linux/if_link.h).
"""

from __future__ import annotations

import ipaddress
import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC

from cni import parsed
from cni.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
F_REQUEST, F_ACK, F_DUMP = 0x1, 0x4, 0x300
F_REPLACE, F_EXCL, F_CREATE = 0x100, 0x200, 0x400
F_CAPPED, F_ACK_TLVS = 0x100, 0x200
NLMSG_ERROR, NLMSG_DONE = 2, 3

IFF_UP, IFF_PROMISC = 0x1, 0x100
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_LINK, IFLA_MASTER = 1, 3, 4, 5, 10
IFLA_LINKINFO, IFLA_IFALIAS, IFLA_NET_NS_FD, IFLA_EXT_MASK = 18, 20, 28, 29
IFLA_NUM_TX_QUEUES, IFLA_NUM_RX_QUEUES, RTEXT_FILTER_SKIP_STATS = 31, 32, 8
IFLA_TSO_MAX_SIZE, IFLA_GSO_IPV4_MAX_SIZE = 59, 63
INFO_KIND, INFO_DATA, INFO_SLAVE_KIND, INFO_SLAVE_DATA = 1, 2, 4, 5
VETH_INFO_PEER = 1
IFLA_INFO_BR_FILTERING = 7
BRPORT_MODE, BRPORT_ISOLATED = 4, 33
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST, IFA_FLAGS = 1, 2, 4, 8
IFA_F_NODAD, IFA_F_NOPREFIXROUTE = 0x02, 0x200
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE = 1, 4, 5, 6, 7, 8, 15
RTAX_MTU, RTAX_ADVMSS = 2, 8
RTNH_F_ONLINK = 4
SCOPE_UNIVERSE, SCOPE_LINK, SCOPE_NOWHERE = 0, 253, 255
ROUTE_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 5: "multicast", 6: "blackhole", 7: "unreachable"}
ROUTE_TYPES |= {8: "prohibit", 9: "throw"}
ROUTE_NUMBERS = {name: number for number, name in ROUTE_TYPES.items()}
MAIN_TABLE = 254
PROTO_BOOT, PROTO_STATIC = 3, 4


@frozen
class Link:
    """One interface. `peer` is the ifindex of a veth's other end (in the other end's namespace)."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    master: int
    kind: str
    peer: int
    hairpin: bool
    alias: str
    isolated: bool = False
    promisc: bool = False
    filtering: bool = False  # a bridge's VLAN filtering
    gso: int = 0  # most bytes of an IPv4 TCP packet given to it; 0: a kernel before 6.3, always 64 kB
    gso_most: int = 0  # what that may be set to; a bridge's: the least of its ports', 64 kB before the first


@frozen
class Address:
    index: int
    address: str  # with prefix length


@frozen
class RouteEntry:
    """One route; `dst` is a prefix ("0.0.0.0/0" for the default), `kind` one of ROUTE_TYPES' names."""

    dst: str
    kind: str
    device: int
    gateway: str
    metric: int
    table: int
    protocol: int
    source: str


@frozen
class Message:
    """A request before it has a sequence number; `action` finishes the sentence "Could not …"."""

    action: str
    kind: int
    flags: int
    body: bytes


def new_bridge(name: str, *, mac: str = "", mtu: int = 0) -> Message:
    """A bridge that is up at once. A MAC given here stays; otherwise it follows the lowest port's."""
    body = ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name)
    if mac:
        body += attribute(IFLA_ADDRESS, _mac_bytes(mac))
    if mtu:
        body += u32(IFLA_MTU, mtu)
    body += attribute(IFLA_LINKINFO, text(INFO_KIND, "bridge"))
    return Message(f"create bridge {name}", RTM_NEWLINK, F_CREATE | F_EXCL, body)


def new_veth(
    name: str,
    *,
    peer: str,
    peer_netns: int,
    master: int = 0,
    mtu: int = 0,
    mac: str = "",
    peer_mac: str = "",
    gso: int = 0,
) -> Message:
    """A veth pair: the near end up and in bridge `master`, the far end born inside `peer_netns`.

    The far end must not be set up in this message: the kernel would bring it up before it is linked.
    Each end has one queue; by itself the kernel makes one for each processor, with a folder in sysfs, which
    takes a third of the time and speeds nothing up (a veth keeps no queue unless NAPI is switched on).
    """
    queues = u32(IFLA_NUM_TX_QUEUES, 1) + u32(IFLA_NUM_RX_QUEUES, 1)
    far = ifinfo() + text(IFLA_IFNAME, peer) + u32(IFLA_NET_NS_FD, peer_netns) + queues
    body = ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name) + queues
    if mtu:
        far += u32(IFLA_MTU, mtu)
        body += u32(IFLA_MTU, mtu)
    if gso:  # of both: what an end does not take is cut to the MTU before it
        far += u32(IFLA_GSO_IPV4_MAX_SIZE, gso)
        body += u32(IFLA_GSO_IPV4_MAX_SIZE, gso)
    if peer_mac:
        far += attribute(IFLA_ADDRESS, _mac_bytes(peer_mac))
    if mac:
        body += attribute(IFLA_ADDRESS, _mac_bytes(mac))
    if master:
        body += u32(IFLA_MASTER, master)
    data = attribute(INFO_DATA, attribute(VETH_INFO_PEER, far))
    body += attribute(IFLA_LINKINFO, text(INFO_KIND, "veth") + data)
    return Message(f"create veth {name}/{peer}", RTM_NEWLINK, F_CREATE | F_EXCL, body)


def set_port(name: str, *, hairpin: bool = False, isolated: bool = False, alias: str = "") -> Message:
    """Configure a bridge port. Hairpin lets it send a frame back to where it came from (a pod reaching itself
    by its Service); isolated ports reach none of the other isolated ones."""
    body = ifinfo() + text(IFLA_IFNAME, name)
    if alias:
        body += attribute(IFLA_IFALIAS, alias.encode()[:255])
    if hairpin or isolated:
        data = attribute(BRPORT_MODE, bytes([hairpin]))
        if isolated:  # a kernel before 4.18 does not know it
            data += attribute(BRPORT_ISOLATED, b"\1")
        info = text(INFO_SLAVE_KIND, "bridge") + attribute(INFO_SLAVE_DATA, data)
        body += attribute(IFLA_LINKINFO, info)
    return Message(f"configure port {name}", RTM_NEWLINK, 0, body)


def set_link(
    index: int,
    *,
    up: bool | None = None,
    mtu: int = 0,
    master: int | None = None,
    alias: str = "",
    promisc: bool | None = None,
    gso: int = 0,
) -> Message:
    """Change a link; `alias` is free text (255 bytes) that `ip link` shows."""
    change = (IFF_UP if up is not None else 0) | (IFF_PROMISC if promisc is not None else 0)
    flags = (IFF_UP if up else 0) | (IFF_PROMISC if promisc else 0)
    body = ifinfo(index=index, flags=flags, change=change)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    if master is not None:
        body += u32(IFLA_MASTER, master)
    if alias:
        body += attribute(IFLA_IFALIAS, alias.encode()[:255])
    if gso:
        body += u32(IFLA_GSO_IPV4_MAX_SIZE, gso)
    return Message(f"configure interface {index}", RTM_NEWLINK, 0, body)


def delete_link(name: str) -> Message:
    return Message(f"delete interface {name}", RTM_DELLINK, 0, ifinfo() + text(IFLA_IFNAME, name))


def new_address(index: int, address: str, *, replace: bool = False, prefix_route: bool = True) -> Message:
    """Give the link an address with prefix length; IPv6 without duplicate detection, usable at once.

    Without `prefix_route` the kernel adds no route to the address's subnet.
    """
    interface = parsed.interface(address)
    six = interface.version == 6
    family, length = (AF_INET6 if six else AF_INET), interface.network.prefixlen
    flags = (IFA_F_NODAD if six else 0) | (0 if prefix_route else IFA_F_NOPREFIXROUTE)
    body = struct.pack("=BBBBi", family, length, flags & 0xFF, SCOPE_UNIVERSE, index)
    body += attribute(IFA_LOCAL, interface.ip.packed) + attribute(IFA_ADDRESS, interface.ip.packed)
    if not six and length < 31:
        body += attribute(IFA_BROADCAST, interface.network.broadcast_address.packed)
    if flags > 0xFF:  # the header has room for eight flags
        body += u32(IFA_FLAGS, flags)
    return Message(f"add address {address}", RTM_NEWADDR, F_CREATE | (F_REPLACE if replace else F_EXCL), body)


def del_address(index: int, address: str) -> Message:
    interface = parsed.interface(address)
    family = AF_INET6 if interface.version == 6 else AF_INET
    body = struct.pack("=BBBBi", family, interface.network.prefixlen, 0, 0, index)
    return Message(
        f"remove address {address}", RTM_DELADDR, 0, body + attribute(IFA_LOCAL, interface.ip.packed)
    )


def new_route(
    dst: str,
    *,
    index: int = 0,
    gw: str = "",
    kind: str = "unicast",
    metric: int = 0,
    mtu: int = 0,
    advmss: int = 0,
    scope: int | None = None,
    table: int = MAIN_TABLE,
    protocol: int = PROTO_STATIC,
    source: str = "",
    onlink: bool = False,
    replace: bool = False,
) -> Message:
    """`onlink` takes the gateway for a neighbour on `index` though no route of ours says so."""
    if scope is None:
        scope = SCOPE_LINK if index and not gw and parsed.network(dst).version == 4 else SCOPE_UNIVERSE
    body = _route_body(dst, index, gw, kind, metric, table, protocol, scope, RTNH_F_ONLINK if onlink else 0)
    if source:
        body += attribute(RTA_PREFSRC, parsed.address(source).packed)
    metrics = (u32(RTAX_MTU, mtu) if mtu else b"") + (u32(RTAX_ADVMSS, advmss) if advmss else b"")
    if metrics:
        body += attribute(RTA_METRICS, metrics)
    flags = F_CREATE | (F_REPLACE if replace else F_EXCL)
    return Message(f"add {kind} route {dst}", RTM_NEWROUTE, flags, body)


def del_route(
    dst: str,
    *,
    index: int = 0,
    kind: str = "unicast",
    metric: int = 0,
    table: int = MAIN_TABLE,
    protocol: int = 0,
) -> Message:
    # Scope "nowhere" matches a route of any scope (fib_table_delete).
    body = _route_body(dst, index, "", kind, metric, table, protocol, SCOPE_NOWHERE)
    return Message(f"remove {kind} route {dst}", RTM_DELROUTE, 0, body)


def _route_body(
    dst: str,
    index: int,
    gw: str,
    kind: str,
    metric: int,
    table: int,
    protocol: int,
    scope: int,
    flags: int = 0,
) -> bytes:
    network = parsed.network(dst)
    family = AF_INET6 if network.version == 6 else AF_INET
    small = table if table < 256 else 0
    body = rtmsg(family, network.prefixlen, small, protocol, scope, ROUTE_NUMBERS[kind], flags)
    body += u32(RTA_TABLE, table)
    if network.prefixlen:
        body += attribute(RTA_DST, network.network_address.packed)
    if index:
        body += u32(RTA_OIF, index)
    if gw:
        body += attribute(RTA_GATEWAY, parsed.address(gw).packed)
    if metric:
        body += u32(RTA_PRIORITY, metric)
    return body


# --- encoding ------------------------------------------------------------------------------------


def header(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    padding = b"\0" * (-len(body) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body + padding


def parse(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind, flags, sequence, _pid = struct.unpack_from("=IHHII", data, offset)
        if length < 16:
            return
        yield kind, flags, sequence, data[offset + 16 : offset + length]
        offset += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    return struct.pack("=HHI", 8, kind, value)


def ifinfo(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", AF_UNSPEC, 0, index, flags, change)


def rtmsg(
    family: int,
    length: int = 0,
    table: int = 0,
    protocol: int = 0,
    scope: int = 0,
    kind: int = 0,
    flags: int = 0,
) -> bytes:
    return struct.pack("=BBBBBBBBI", family, length, 0, 0, table, protocol, scope, kind, flags)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def explanation(flags: int, payload: bytes) -> str:
    """The kernel's own words from an extended acknowledgement (NLMSGERR_ATTR_MSG is attribute 1)."""
    if not flags & F_ACK_TLVS:
        return ""
    offset = 20
    if not flags & F_CAPPED:
        (length,) = struct.unpack_from("=I", payload, 4)
        offset = 4 + ((length + 3) & ~3)
    return attributes(payload, offset).get(1, b"").rstrip(b"\0").decode(errors="replace")


def _mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def read_link(payload: bytes) -> Link:
    _family, _type, index, flags, _change = struct.unpack_from("=BxHiII", payload)
    found = attributes(payload, 16)
    info = attributes(found.get(IFLA_LINKINFO, b""))
    port = attributes(info.get(INFO_SLAVE_DATA, b""))
    kind = info.get(INFO_KIND, b"").rstrip(b"\0").decode()
    own = attributes(info.get(INFO_DATA, b"")) if kind == "bridge" else {}
    return Link(
        index=index,
        name=found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(),
        mac=found.get(IFLA_ADDRESS, b"").hex(":"),
        mtu=_number(found.get(IFLA_MTU)),
        up=bool(flags & IFF_UP),
        master=_number(found.get(IFLA_MASTER)),
        kind=kind,
        peer=_number(found.get(IFLA_LINK)),
        hairpin=port.get(BRPORT_MODE, b"\0")[0] == 1,
        alias=found.get(IFLA_IFALIAS, b"").rstrip(b"\0").decode(errors="replace"),
        isolated=port.get(BRPORT_ISOLATED, b"\0")[0] == 1,
        promisc=bool(flags & IFF_PROMISC),
        filtering=own.get(IFLA_INFO_BR_FILTERING, b"\0")[0] == 1,
        gso=_number(found.get(IFLA_GSO_IPV4_MAX_SIZE)),
        gso_most=_number(found.get(IFLA_TSO_MAX_SIZE)),
    )


def read_address(payload: bytes) -> Address:
    _family, length, _flags, _scope, index = struct.unpack_from("=BBBBi", payload)
    found = attributes(payload, 8)
    raw = found.get(IFA_LOCAL) or found[IFA_ADDRESS]
    return Address(index=index, address=f"{ipaddress.ip_address(raw)}/{length}")


def read_route(payload: bytes) -> RouteEntry:
    family, length, _src, _tos, table, protocol, _scope, kind, _flags = struct.unpack_from(
        "=BBBBBBBBI", payload
    )
    found = attributes(payload, 12)
    empty = b"\0" * (16 if family == AF_INET6 else 4)
    gateway, source = found.get(RTA_GATEWAY), found.get(RTA_PREFSRC)
    return RouteEntry(
        dst=f"{ipaddress.ip_address(found.get(RTA_DST, empty))}/{length}",
        kind=ROUTE_TYPES.get(kind, str(kind)),
        device=_number(found.get(RTA_OIF)),
        gateway=str(ipaddress.ip_address(gateway)) if gateway else "",
        metric=_number(found.get(RTA_PRIORITY)),
        table=_number(found.get(RTA_TABLE)) or table,
        protocol=protocol,
        source=str(ipaddress.ip_address(source)) if source else "",
    )


def _number(raw: bytes | None) -> int:
    return int(struct.unpack("=I", raw[:4])[0]) if raw and len(raw) >= 4 else 0
