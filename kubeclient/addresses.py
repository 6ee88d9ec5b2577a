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


def special(address: Address) -> list[str]:
    """Why this address cannot be anybody's (ValidateNonSpecialIP)."""
    found = []
    if address.is_unspecified:
        found.append(f"may not be unspecified ({address})")
    if address.is_loopback:
        found.append("may not be in the loopback range (127.0.0.0/8, ::1/128)")
    if address.is_link_local:
        found.append("may not be in the link-local range (169.254.0.0/16, fe80::/10)")
    if _link_local_multicast(address):
        found.append("may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)")
    return found


def _link_local_multicast(address: Address) -> bool:
    """Of multicast only what stays on the link; the second half of ff02's second byte is its scope."""
    first = address.packed
    if address.version == 4:
        return first[:3] == bytes((224, 0, 0))
    return first[0] == 0xFF and first[1] & 0x0F == 0x02
