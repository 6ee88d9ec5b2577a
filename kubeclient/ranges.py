"""PURE. Address ranges as clusters have them: one, or one of each IP version with a comma between.

Flags, ClusterConfiguration and KubeProxyConfiguration all write them so, and the first is the cluster's own
family: what asks for nothing special gets addresses of it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def read_ranges(text: str) -> tuple[Network, ...]:
    """In the order given. Raises ValueError for what is no range, or two of one IP version."""
    found = tuple(ipaddress.ip_network(part.strip()) for part in text.split(","))
    if len({network.version for network in found}) < len(found):
        raise ValueError(f"{text!r} must be one range, or one of IPv4 and one of IPv6 with a comma between")
    return found


def family(network: Network) -> str:
    """The word that the API has for its IP version."""
    return f"IPv{network.version}"


def of_version(ranges: Sequence[Network], version: int) -> Network | None:
    """The one of that IP version, if there is one."""
    return next((network for network in ranges if network.version == version), None)


USUAL_SIZES = {4: 24, 6: 64}


def part_sizes(
    ranges: Sequence[Network], size: int = 0, size_ipv4: int = 0, size_ipv6: int = 0
) -> dict[int, int]:
    """By IP version: the prefix length of each node's part of the pods' ranges, 0 for the usual one.

    Raises ValueError, by the names of kube-controller-manager's flags, for parts that do not fit or have no
    room for pods, and for a size that does not say which of two ranges it is about.
    """
    if size and len(ranges) > 1:
        raise ValueError(
            "--node-cidr-mask-size does not say which of two ranges it is for "
            "(use --node-cidr-mask-size-ipv4 and --node-cidr-mask-size-ipv6)"
        )
    found = {}
    for version, given, option in ((4, size_ipv4, "-ipv4"), (6, size_ipv6, "-ipv6")):
        network = of_version(ranges, version)
        if network is None:
            if given:
                raise ValueError(f"--node-cidr-mask-size{option} {given}: --cluster-cidr has no IPv{version}")
            continue
        asked, name = (given, option) if given else (size, "")
        most = network.max_prefixlen - 2
        if asked and not network.prefixlen <= asked <= most:
            raise ValueError(
                f"--node-cidr-mask-size{name} {asked} must be between {network.prefixlen}, "
                f"the mask of --cluster-cidr {network}, and {most}"
            )
        found[version] = asked or max(USUAL_SIZES[version], network.prefixlen)
    return found


def everywhere(wanted: str, own: str) -> str:
    """Where to listen: 0.0.0.0 on a machine that others reach at an IPv6 address (`own`) is ::, both versions
    at once. A server in Go takes 0.0.0.0 so, and configurations are written for those."""
    return "::" if wanted == "0.0.0.0" and ":" in own else wanted
