"""`kubelet-py inspect node`: how this machine reaches another node's pods, from the kernel's own tables.

The route of each podCIDR, and the tunnel's peer where it leads into the tunnel: its endpoint, the prefixes
that are accepted from it, its last handshake and its counters, as `wg show` would tell them.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.wireguard import DeviceState, PeerState
from kubelet_py.cli.errors import CommandError
from kubelet_py.node import peers, tunnel
from kubelet_py.node.routes import PROTOCOL, TUNNEL


def inspect_node(node: Mapping[str, Any]) -> dict[str, Any]:
    """Raises CommandError where the kernel does not let itself be asked."""
    ranges = [text for text in (peers.range_of(node, version) for version in (4, 6)) if text]
    try:
        key = (peers.end_of_tunnel(node) or ("", 0))[0]
    except ValueError as error:
        key = f"(unusable: {error})"
    try:
        routes = {pods: _route(pods) for pods in ranges}
        device = _device()
    except NetlinkError as error:
        raise CommandError(f"{error} (this needs root)") from error
    peer = next((each for each in device.peers if each.key == key), None) if device else None
    return {
        "node": node["metadata"]["name"],
        "addresses": [
            entry["address"]
            for entry in (node.get("status") or {}).get("addresses", [])
            if entry["type"] == "InternalIP"
        ],
        "pods": ranges,
        "routes": routes,
        "key": key or "(it announces none: its packets are not encrypted)",
        **({"tunnel": told(peer, time.time())} if peer is not None else {}),
    }


def told(peer: PeerState, now: float) -> dict[str, Any]:
    """PURE. A peer in words and numbers.

    >>> told(PeerState("k", None, frozenset({"10.0.0.0/24"})), 100.0)["handshake"]
    'never'
    >>> told(PeerState("k", None, frozenset(), 88.0, 5, 7), 100.0)
    {'endpoint': '', 'allowed': [], 'handshake': '12 s ago', 'received': 5, 'sent': 7}
    """
    return {
        "endpoint": str(peer.endpoint or ""),
        "allowed": sorted(peer.allowed),
        "handshake": f"{now - peer.handshake:.0f} s ago" if peer.handshake else "never",
        "received": peer.received,
        "sent": peer.sent,
    }


def summary(device: DeviceState, now: float) -> str:
    """PURE. One line for `status`: the port, the key, and how many peers have answered lately."""
    alive = sum(1 for peer in device.peers if peer.handshake and now - peer.handshake <= 180)
    return (
        f"WireGuard on {TUNNEL}, port {device.port}, key {device.public_key}; {alive} of "
        f"{len(device.peers)} peers with a session"
    )


def tunnel_line(now: Callable[[], float] = time.time) -> str:
    """What `status` shows of a node that encrypts."""
    try:
        return summary(tunnel.read_kernel(), now())
    except NetlinkError as error:
        return f"none: {error}"


def _device() -> DeviceState | None:
    with Netlink() as netlink:
        if netlink.link(TUNNEL) is None:
            return None
    return tunnel.read_kernel()


def _route(pods: str) -> str:
    network = ipaddress.ip_network(pods)
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    with Netlink() as netlink:
        for route in netlink.routes(family=family):
            if route.dst == pods and (route.protocol == PROTOCOL or not route.gateway):
                link = netlink.link(route.device) if route.device else None
                via = f"via {route.gateway} " if route.gateway else ""
                return f"{via}dev {link.name if link else '?'}"
    return "none"
