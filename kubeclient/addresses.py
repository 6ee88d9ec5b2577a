"""PURE. IP addresses as Go reads them, for they are judged as what they are, not as what they look like.

Python's `ipaddress` takes a zone behind an IPv6 address (`fe80::1%…`), any text with spaces and line ends in
it; Go's ParseIP takes none. And an IPv4 address in IPv6's clothes (`::ffff:127.0.0.1`) is an IPv4 address to
Go's To4 and to the kernel, which connects there: so it is one here.
"""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def read_ip(text: str) -> Address | None:
    """None for what is no address."""
    try:
        address = None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
