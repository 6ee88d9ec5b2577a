"""Traffic control messages as bytes: a token bucket on a link, and a detour for what arrives on one.

The kernel shapes only what leaves a device. What arrives is shaped by sending it through an intermediate
device (ifb) first: an ingress queue with a filter that matches every packet (u32, no bits compared) and the
action mirred, which redirects. Layout: uapi linux/rtnetlink.h (tcmsg), linux/pkt_sched.h, linux/pkt_cls.h,
linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_UNSPEC, htons

from cni.errors import NetlinkError
from cni.frozen import frozen
from cni.netlink import Netlink
from cni.rtnetlink import (
    F_CREATE,
    F_EXCL,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_LINKINFO,
    IFLA_MTU,
    INFO_KIND,
    RTM_NEWLINK,
    Message,
    attribute,
    attributes,
    ifinfo,
    text,
    u32,
)

RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWTFILTER = 36, 37, 38, 44
ROOT, INGRESS, INGRESS_HANDLE, TBF_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000, 0x00010000
TCA_KIND, TCA_OPTIONS = 1, 2
TBF_PARMS, TBF_RATE64, TBF_BURST = 1, 4, 6
U32_CLASSID, U32_SEL, U32_ACT = 1, 5, 7
ACT_KIND, ACT_OPTIONS, MIRRED_PARMS = 1, 2, 2
ETH_P_ALL, PRIORITY = 3, 1
ACT_STOLEN, EGRESS_REDIRECT = 4, 1
LINKLAYER_ETHERNET, U32_TERMINAL = 1, 1
LATENCY_SECONDS = 0.025  # how long a packet may wait for tokens, as upstream's plugin has it


@frozen
class Rate:
    """A limit in bits per second and how many bits may pass at once."""

    bits: int
    burst: int


@frozen
class Queue:
    """A queueing discipline as the kernel lists it; `bits` is a token bucket's rate, else 0."""

    device: int
    kind: str
    parent: int
    bits: int


def token_bucket(index: int, rate: Rate) -> Message:
    """Make, or change, the link's root queue to a token bucket filter."""
    speed, burst = rate.bits // 8, max(rate.burst // 8, 1)
    limit = min(int(speed * LATENCY_SECONDS) + burst, 0xFFFFFFFF)
    spec = struct.pack("=BBHhHI", 0, LINKLAYER_ETHERNET, 0, 0, 0, min(speed, 0xFFFFFFFF))
    parms = spec + struct.pack("=BBHhHI", 0, 0, 0, 0, 0, 0) + struct.pack("=III", limit, 0, 0)
    options = attribute(TBF_PARMS, parms) + u32(TBF_BURST, burst)
    if speed > 0xFFFFFFFF:
        options += attribute(TBF_RATE64, struct.pack("=Q", speed))
    body = _tcmsg(index, TBF_HANDLE, ROOT) + text(TCA_KIND, "tbf") + attribute(TCA_OPTIONS, options)
    return Message("limit the rate (does the kernel have sch_tbf?)", RTM_NEWQDISC, F_CREATE | 0x100, body)


def ingress(index: int) -> Message:
    """A place on the link where arriving packets meet filters."""
    body = _tcmsg(index, INGRESS_HANDLE, INGRESS) + text(TCA_KIND, "ingress")
    return Message("queue what arrives (does the kernel have sch_ingress?)", RTM_NEWQDISC, F_CREATE, body)


def redirect(index: int, target: int) -> Message:
    """Send every packet that arrives on the link through the device `target`."""
    mirred = struct.pack("=IIiiiiI", 0, 0, ACT_STOLEN, 0, 0, EGRESS_REDIRECT, target)
    action = text(ACT_KIND, "mirred") + attribute(ACT_OPTIONS, attribute(MIRRED_PARMS, mirred))
    selector = struct.pack("=BBBxHHhhI", U32_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    options = u32(U32_CLASSID, 0x00010001) + attribute(U32_SEL, selector)
    options += attribute(U32_ACT, attribute(1, action))
    info = PRIORITY << 16 | htons(ETH_P_ALL)
    body = _tcmsg(index, 0, INGRESS_HANDLE, info) + text(TCA_KIND, "u32") + attribute(TCA_OPTIONS, options)
    what = "redirect what arrives (does the kernel have cls_u32 and act_mirred?)"
    return Message(what, RTM_NEWTFILTER, F_CREATE | F_EXCL, body)


def intermediate(name: str, mtu: int) -> Message:
    """An ifb device, up at once."""
    body = ifinfo(flags=IFF_UP, change=IFF_UP) + text(IFLA_IFNAME, name)
    if mtu:
        body += u32(IFLA_MTU, mtu)
    body += attribute(IFLA_LINKINFO, text(INFO_KIND, "ifb"))
    return Message(f"create ifb {name} (does the kernel have ifb?)", RTM_NEWLINK, F_CREATE | F_EXCL, body)


def queues(netlink: Netlink, index: int) -> list[Queue]:
    """The queueing disciplines of one link."""
    found = [_read(payload) for payload in netlink.dump(RTM_GETQDISC, _tcmsg(index, 0, 0))]
    return [queue for queue in found if queue.device == index]


def clear(netlink: Netlink, index: int) -> None:
    """Take root and ingress queue off a link; what is not there is no error."""
    for handle, parent in ((TBF_HANDLE, ROOT), (INGRESS_HANDLE, INGRESS)):
        try:
            netlink.batch([Message("remove a queue", RTM_DELQDISC, 0, _tcmsg(index, handle, parent))])
        except NetlinkError as error:
            if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):
                raise


def _read(payload: bytes) -> Queue:
    _family, index, _handle, parent, _info = struct.unpack_from("=BxxxiIII", payload)
    found = attributes(payload, 20)
    kind = found.get(TCA_KIND, b"").rstrip(b"\0").decode()
    bits = 0
    if kind == "tbf":
        options = attributes(found.get(TCA_OPTIONS, b""))
        (speed,) = struct.unpack_from("=I", options.get(TBF_PARMS, b"\0" * 12), 8)
        if TBF_RATE64 in options:
            (speed,) = struct.unpack_from("=Q", options[TBF_RATE64])
        bits = speed * 8
    return Queue(index, kind, parent, bits)


def _tcmsg(index: int, handle: int, parent: int, info: int = 0) -> bytes:
    return struct.pack("=BxxxiIII", AF_UNSPEC, index, handle, parent, info)
