"""Generic netlink: kernel parts that have no netlink number of their own share NETLINK_GENERIC, by names.

A part's name stands for a number that the kernel gives it when it is loaded, and that is the message's type;
behind the common header come a command and a version (uapi linux/genetlink.h). Attributes that hold others
must say so by a flag, or newer parts refuse them.
"""

from __future__ import annotations

import errno
import struct

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.rtnetlink import Message, attribute, attributes

NETLINK_GENERIC = 16
GENL_ID_CTRL, CTRL_CMD_GETFAMILY = 16, 3
CTRL_ATTR_FAMILY_ID, CTRL_ATTR_FAMILY_NAME = 1, 2
NLA_F_NESTED = 0x8000
HEADER = 4  # bytes in front of the attributes


def command(number: int, version: int) -> bytes:
    return struct.pack("=BBH", number, version, 0)


def nested(kind: int, value: bytes) -> bytes:
    return attribute(kind | NLA_F_NESTED, value)


def elements(data: bytes) -> list[bytes]:
    """The values of an array: attributes whose types say nothing."""
    found, offset = [], 0
    while offset + 4 <= len(data):
        length = struct.unpack_from("=H", data, offset)[0]
        if length < 4:
            break
        found.append(data[offset + 4 : offset + length])
        offset += (length + 3) & ~3
    return found


def families(payloads: list[bytes]) -> dict[str, int]:
    """Name → number, from a dump of all parts."""
    known: dict[str, int] = {}
    for payload in payloads:
        parts = attributes(payload, HEADER)
        name = parts[CTRL_ATTR_FAMILY_NAME].rstrip(b"\0").decode()
        (known[name],) = struct.unpack("=H", parts[CTRL_ATTR_FAMILY_ID])
    return known


class GenericNetlink:
    """One part of the kernel by its name. Raises NetlinkError (ENOENT) where the kernel has none."""

    def __init__(self, name: str, version: int, netns_fd: int | None = None) -> None:
        self._channel = Netlink(netns_fd, NETLINK_GENERIC)
        self._version = version
        known = families(self._channel.dump(GENL_ID_CTRL, command(CTRL_CMD_GETFAMILY, 1)))
        if name not in known:
            self._channel.close()
            raise NetlinkError(f"find {name} in this kernel", errno.ENOENT)
        self._family = known[name]

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> GenericNetlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tell(self, action: str, number: int, bodies: list[bytes]) -> None:
        """Send the command once for each body, in one system call; `action` finishes "Could not …"."""
        head = command(number, self._version)
        self._channel.batch([Message(action, self._family, 0, head + body) for body in bodies])

    def ask(self, number: int, body: bytes) -> list[bytes]:
        """The attributes of each message of a dump."""
        head = command(number, self._version)
        return [payload[HEADER:] for payload in self._channel.dump(self._family, head + body)]
