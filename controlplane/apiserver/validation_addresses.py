"""IP addresses and ranges that clients write, as Go reads them.

What passes here ends up in rules of the packet filter, as text in some. Python's `ipaddress` takes a zone
behind an IPv6 address (`fe80::1%…`), any text with spaces and line ends in it; Go's ParseIP takes none, and
neither does this. Source: apimachinery's pkg/util/validation and ValidateNonSpecialIP.
"""

from __future__ import annotations

import ipaddress

from controlplane.apiserver.validation_fields import Causes

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IP_DETAIL = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
CIDR_DETAIL = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"


def read_ip(text: str) -> Address | None:
    """None for what is no address."""
    try:
        return None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        return None


def is_ip(text: str) -> bool:
    return read_ip(text) is not None


def read_range(text: str) -> Network | None:
    """None for what is no range; a lone address is none. Bits below the mask may be set."""
    try:
        return None if "/" not in text or "%" in text else ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def check_endpoint_ip(causes: Causes, path: str, text: str) -> None:
    """An address that traffic may be sent to: not this machine itself nor one of its links."""
    address = read_ip(text)
    if address is None:
        causes.invalid(path, text, IP_DETAIL)
    else:
        causes.each(path, text, special(address))


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
