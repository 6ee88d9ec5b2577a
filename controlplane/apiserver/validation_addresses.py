"""IP addresses and ranges that clients write, as Go reads them.

What passes here ends up in rules of the packet filter, as text in some: nothing but an address may (see
kubeclient.addresses). Source: apimachinery's pkg/util/validation and ValidateNonSpecialIP.
"""

from __future__ import annotations

import ipaddress

from controlplane.apiserver.validation_fields import Causes
from kubeclient.addresses import read_ip, special

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IP_DETAIL = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"
CIDR_DETAIL = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


def is_ip(text: str) -> bool:
    return read_ip(text) is not None


def read_range(text: str) -> Network | None:
    """None for what is no range; a lone address is none, nor one with a mask written as an address. Bits
    below the mask may be set."""
    size = text.partition("/")[2]
    try:
        plain = size.isascii() and size.isdigit() and "%" not in text
        return ipaddress.ip_network(text, strict=False) if plain else None
    except ValueError:
        return None


def check_endpoint_ip(causes: Causes, path: str, text: str) -> None:
    """An address that traffic may be sent to: not this machine itself nor one of its links."""
    address = read_ip(text)
    if address is None:
        causes.invalid(path, text, IP_DETAIL)
    else:
        causes.each(path, text, special(address))


def reachable(text: str) -> bool:
    """Whether the API server may connect there for somebody else: not to its own machine nor to its links
    (proxyutil.IsProxyableIP, which asks Go's IsGlobalUnicast)."""
    address = read_ip(text)
    return address is not None and not (
        address.is_unspecified
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address == _BROADCAST
    )
