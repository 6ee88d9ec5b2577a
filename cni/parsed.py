"""Addresses and prefixes from text, parsed once.

One ADD asks some fifty times what a text like "10.244.1.7/24" says: its names, messages, routes and checks
are made in different places from a handful of texts. Parsing takes 10 µs each time; the values cannot be
changed, so those last asked for are kept.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_KEPT = 256

TYPE_CHECKING = False
if TYPE_CHECKING:
    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@lru_cache(_KEPT)
def address(text: str) -> Address:
    """Such as 10.244.1.7. Raises ValueError."""
    return ipaddress.ip_address(text)


@lru_cache(_KEPT)
def interface(text: str) -> Interface:
    """An address with the length of its prefix. Raises ValueError."""
    return ipaddress.ip_interface(text)


@lru_cache(_KEPT)
def network(text: str) -> Network:
    """A prefix without host bits. Raises ValueError."""
    return ipaddress.ip_network(text)
