"""Which of this host's addresses the health ports of Services answer on: those that node ports do.

As upstream (pkg/proxy/healthcheck): where nodePortAddresses leave nothing out, a health port listens on all
addresses, else on each one of the ranges. The kernel lists them with RTM_GETADDR (rtnetlink(7)).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Sequence

from proxy.errors import ProxyError
from proxy.nfattributes import as_dict

_HEAD = struct.Struct("=IHHII")
_NEWADDR, _GETADDR = 20, 22
_DONE, _ERROR = 3, 2
_REQUEST_DUMP = 0x301
_ADDRESS, _LOCAL = 1, 2  # IFA_ADDRESS is the other end's on a point-to-point link, IFA_LOCAL our own


def read() -> list[str]:
    """Every address of the calling thread's network namespace. Raises ProxyError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as kernel:
            kernel.send(_HEAD.pack(24, _GETADDR, _REQUEST_DUMP, 1, 0) + bytes(8))
            found: list[str] = []
            while _take(kernel.recv(1 << 16), found):
                pass
            return found
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
        raise ProxyError(f"Could not list this host's addresses: {name}") from error


def _take(data: bytes, found: list[str]) -> bool:
    """Add a datagram's addresses; False after the last one."""
    start = 0
    while start + 16 <= len(data):
        length, kind, _flags, _sequence, _port = _HEAD.unpack_from(data, start)
        if kind == _ERROR:
            number = -struct.unpack_from("=i", data, start + 16)[0]
            raise OSError(number, os.strerror(number))
        if kind == _DONE or length < 16:
            return False
        if kind == _NEWADDR:
            told = as_dict(data[start + 24 : start + length])
            address = told.get(_LOCAL) or told.get(_ADDRESS)
            if address:
                found.append(str(ipaddress.ip_address(address)))
        start += (length + 3) & ~3
    return True


def chosen(ranges: Sequence[str], versions: Sequence[int], own: Iterable[str]) -> list[str]:
    """PURE: where to listen. `::` takes IPv4 in as well. A link's own addresses have no node ports."""
    networks = [ipaddress.ip_network(text) for text in ranges]
    if not networks or any(network.prefixlen == 0 for network in networks):
        return ["::" if 6 in versions else "0.0.0.0"]
    found = []
    for address in map(ipaddress.ip_address, own):
        of_link = address.version == 6 and address.is_link_local
        if address.version in versions and not of_link and any(address in network for network in networks):
            found.append(str(address))
    return found
