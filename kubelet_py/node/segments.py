"""How many bytes of TCP a pod hands out at a time (--pod-gso-size).

A sender's kernel cuts its stream to the MTU as late as it can: a device that cuts by itself is given pieces
of 64 kB, or more where its driver takes more and somebody has said so (gso_ipv4_max_size, Linux 6.3; "BIG
TCP"). Between pods of a node nobody cuts at all, and what a packet costs on its way (routing, connection
tracking, rules, the bridge) is paid once for each piece, so larger ones are faster. On the way out it is the
other way round: a piece larger than the uplink takes is cut to the MTU by the node's processors. So pods'
pieces are as large as the uplink's, unless a size was asked for.
"""

from __future__ import annotations

import argparse

from cni.rtnetlink import Link
from cni.veth import GSO_MOST, GSO_USUAL

CHOICES = "auto|BYTES"


def size(text: str) -> int:
    """The value of --pod-gso-size, 0 for auto. Raises argparse.ArgumentTypeError."""
    if text == "auto":
        return 0
    number = int(text) if text.isascii() and text.isdigit() else -1
    if not GSO_USUAL <= number <= GSO_MOST:
        allowed = f"auto nor a number from {GSO_USUAL} to {GSO_MOST}"
        raise argparse.ArgumentTypeError(f"{text!r} is neither {allowed}")
    return number


def chosen(asked: int, uplink: Link | None, *, wrapped: bool) -> int:
    """gsoIPv4MaxSize of the pods' network, 0 for the kernel's own.

    `uplink`: the interface of the default route. `wrapped`: pods' packets to other nodes go into others,
    whose devices take 64 kB.
    """
    if asked or wrapped or uplink is None:
        return asked
    return min(uplink.gso, GSO_MOST) if uplink.gso > GSO_USUAL else 0
