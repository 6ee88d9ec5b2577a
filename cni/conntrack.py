"""Forgetting UDP flows to a port of the node.

Address translation is decided by a flow's first packet and remembered for as long as packets come. A client
that sent to the port before the pod was there, or to the pod before it, would never reach the present one.
Messages of ctnetlink, so that no tool has to be installed: uapi linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6, IPPROTO_UDP

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.rtnetlink import Message, attribute, attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

NETLINK_NETFILTER = 12
CT_GET, CT_DELETE = 0x0101, 0x0102  # subsystem conntrack, message
CTA_TUPLE_ORIG, CTA_ZONE = 1, 18
TUPLE_PROTO, PROTO_NUMBER, PROTO_DST_PORT = 2, 1, 3
_HEADER = 4  # family, version, resource


def forget_udp(version: int, ports: Collection[int]) -> int:
    """Delete the node's UDP flows of this IP version that were sent to one of `ports`; how many there were.

    A kernel without ctnetlink keeps its flows until they expire.
    """
    if not ports:
        return 0
    family = bytes([AF_INET if version == 4 else AF_INET6, 0, 0, 0])
    forgotten = 0
    with Netlink(protocol=NETLINK_NETFILTER) as netlink:
        try:
            flows = netlink.dump(CT_GET, family)
        except NetlinkError as error:
            if error.errno in (errno.EINVAL, errno.EOPNOTSUPP):
                return 0
            raise
        for payload in flows:
            body = selector(payload, ports)
            if body is None:
                continue
            try:
                netlink.batch([Message("forget a UDP flow", CT_DELETE, 0, body)])
                forgotten += 1
            except NetlinkError as error:
                if error.errno != errno.ENOENT:  # it ended by itself
                    raise
    return forgotten


def selector(payload: bytes, ports: Collection[int]) -> bytes | None:
    """PURE: the body that deletes a listed flow, or None when it is not UDP to one of `ports`."""
    found = attributes(payload, _HEADER)
    tuple_ = found.get(CTA_TUPLE_ORIG, b"")
    proto = attributes(attributes(tuple_).get(TUPLE_PROTO, b""))
    if proto.get(PROTO_NUMBER, b"\0")[0] != IPPROTO_UDP:
        return None
    (port,) = struct.unpack_from("!H", proto.get(PROTO_DST_PORT, b"\0\0"))
    if port not in ports:
        return None
    body = payload[:_HEADER] + attribute(CTA_TUPLE_ORIG | 0x8000, tuple_)  # 0x8000: nested
    return body + attribute(CTA_ZONE, found[CTA_ZONE]) if CTA_ZONE in found else body
