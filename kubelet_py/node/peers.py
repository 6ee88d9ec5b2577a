"""PURE. The other nodes of the cluster, from their Node objects: where their pods are, and how to get there.

On one layer-2 segment a route through the other node's address is enough, and costs nothing. Otherwise (a
router lies between, which knows nothing of pods) packets travel inside VXLAN. Everything either way needs
is in the Node objects: the overlay's addresses and MACs follow from a node's podCIDR, so that nothing is
learnt, and nothing has to be announced. With --pod-routes wireguard nodes that announce a key are reached
inside the encrypted tunnel, whether a router lies between or not (encryption.py).
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cni.wireguard import decode_key, encode_key

log = logging.getLogger(__name__)

Object = Mapping[str, Any]
MODES = ("auto", "direct", "vxlan", "wireguard")
CHOICES = "{" + ",".join(MODES) + "}"
KEY, PORT = "kubelet-py/wireguard-public-key", "kubelet-py/wireguard-port"
DEFAULT_PORT = 51820


def mode(text: str) -> str:
    """The value of --pod-routes. Raises argparse.ArgumentTypeError."""
    if text not in MODES:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(MODES)}")
    return text


def port(text: str) -> int:
    """The value of --wireguard-port. Raises argparse.ArgumentTypeError."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port number (1-65535)")
    return int(text)


@dataclass(frozen=True, slots=True, order=True)
class Peer:
    """Another node; `reason` says in words why its pods are reached directly, through the overlay or, where
    it has a `key`, through the tunnel, whose other end is at `port`."""

    name: str
    pod_cidr: str
    address: str
    overlay: bool
    reason: str
    key: str = ""
    port: int = 0

    @property
    def way(self) -> str:
        if self.key:
            return "wireguard"
        return "vxlan" if self.overlay else "direct"

    @property
    def overlay_address(self) -> str:
        return overlay_address(self.pod_cidr)

    @property
    def mac(self) -> str:
        return overlay_mac(self.pod_cidr)


def overlay_address(pod_cidr: str) -> str:
    """The node's own address on the overlay: the first of its podCIDR, which no pod ever gets; with IPv6,
    where that is the anycast address of the subnet's routers, what the kernel makes of the MAC (link-local).
    """
    network = ipaddress.ip_network(pod_cidr)
    if network.version == 4:
        return str(network.network_address)
    octets = bytes.fromhex(overlay_mac(pod_cidr).replace(":", ""))
    identifier = bytes([octets[0] ^ 2]) + octets[1:3] + b"\xff\xfe" + octets[3:]  # RFC 4291, appendix A
    return str(ipaddress.IPv6Address(b"\xfe\x80" + bytes(6) + identifier))


def overlay_mac(pod_cidr: str) -> str:
    """The MAC of a node's VXLAN device: locally administered, the rest from its podCIDR."""
    network = ipaddress.ip_network(pod_cidr)
    packed = network.network_address.packed
    tail = packed if len(packed) == 4 else hashlib.sha256(packed).digest()[:4]
    return (b"\x02\x4b" + tail).hex(":")


def peers(
    nodes: Iterable[Object],
    me: str,
    pod_cidr: str,
    connected: Sequence[str],
    mode: str = "auto",
    own_key: str = "",
    own_addresses: Iterable[str] = (),
) -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    """The peers, and what is wrong with nodes that cannot be one (a sentence each).

    `connected` are the prefixes that the node's uplink reaches without a router; `own_key` is the key of this
    node's end of the tunnel, "" where it has none.
    """
    ours = ipaddress.ip_network(pod_cidr)
    segments = [ipaddress.ip_network(text, strict=False) for text in connected]
    here = _own(own_addresses, ours.version)
    found: list[Peer] = []
    problems: list[str] = []
    taken: list[tuple[str, Any]] = [(me, ours)]
    others = sorted(
        (n for n in nodes if n["metadata"]["name"] != me), key=lambda n: str(n["metadata"]["name"])
    )
    disputed = _disputes(others, me, own_key) if own_key else {}
    claims = _Claims()
    for node in others:
        cidr = range_of(node, ours.version)
        network = ipaddress.ip_network(cidr) if cidr else ours
        # A range that is refused takes nobody else's address.
        if not network.overlaps(ours) and not any(one in network for one in here):
            claims.add(node["metadata"]["name"], network)
    for node in others:
        name = node["metadata"]["name"]
        cidr = range_of(node, ours.version)
        if not cidr:
            continue
        network = ipaddress.ip_network(cidr)
        clash = next((other for other, known in taken if known.overlaps(network)), None)
        if clash is not None:
            problems.append(f"Node {name} claims pods at {cidr}, which overlaps with node {clash}")
            continue
        held = next((one for one in here if one in network), None)
        if held is not None:
            problems.append(f"Node {name} claims pods at {cidr}, where this node's own address {held} lies")
            continue
        address = _internal_ip(node, ours.version)
        if address is None:
            problems.append(f"Node {name} announces no InternalIP of IPv{ours.version}")
            continue
        where = ipaddress.ip_address(address)
        if where in here or where in ours:
            problems.append(f"Node {name} announces {address}, which is this node's own")
            continue
        # What is sent to such a node would go to a pod, or round in circles.
        owner = claims.of(where)
        if owner is not None:
            problems.append(
                f"Node {name} announces {address}, which is for pods of node {owner[0]} ({owner[1]})"
            )
            continue
        try:
            announced = end_of_tunnel(node) if own_key else None
        except ValueError as error:
            problems.append(f"Node {name} announces a key that is none: {error}")
            continue
        if name in disputed:
            problems.append(disputed[name])
            continue
        taken.append((name, network))
        if announced is not None:
            found.append(Peer(name, cidr, address, False, "both nodes have a key", *announced))
            continue
        near = next((s for s in segments if where in s), None)
        overlay, reason = _way("auto" if mode == "wireguard" else mode, address, near)
        if own_key:
            reason += "; it announces no key, so its packets are not encrypted"
        found.append(Peer(name, cidr, address, overlay, reason))
    return tuple(found), tuple(problems)


def _disputes(others: Iterable[Object], me: str, own_key: str) -> dict[str, str]:
    """What is wrong with nodes that announce the key of an older one, or the address of one where either has
    a key; by name. A key, and an address in the tunnel, lead to one node: the kernel gives a prefix to the
    last peer that asks for it, and who joins later must not take another's packets. Both IP versions are
    looked at, so that a node is left out of both.
    """
    keys = {own_key: me}
    holders: dict[str, tuple[str, bool]] = {}
    wrong: dict[str, str] = {}
    for node in sorted(others, key=_age):
        name = node["metadata"]["name"]
        try:
            announced = end_of_tunnel(node)
        except ValueError:  # it is no peer, whatever else it announces
            continue
        addresses = [found for version in (4, 6) if (found := _internal_ip(node, version))]
        held = [a for a in addresses if a in holders and (announced or holders[a][1])]
        if announced is not None and announced[0] in keys:
            wrong[name] = f"Node {name} announces the key of node {keys[announced[0]]}"
        elif held:
            wrong[name] = f"Node {name} announces {held[0]}, the address of node {holders[held[0]][0]}"
        else:
            keys.update({announced[0]: name} if announced else {})
            for address in addresses:
                holders.setdefault(address, (name, announced is not None))
    return wrong


def _age(node: Object) -> tuple[str, str]:
    """The oldest first, by the API server's own RFC 3339 stamp of seconds."""
    return str(node["metadata"].get("creationTimestamp") or ""), str(node["metadata"]["name"])


def end_of_tunnel(node: Object) -> tuple[str, int] | None:
    """The key and port that a Node announces, None where it does not encrypt. Raises ValueError.

    The key as the kernel tells it: base64 has several spellings of one, which must not be several peers.
    """
    notes = (node.get("metadata") or {}).get("annotations") or {}
    key, written = notes.get(KEY, ""), notes.get(PORT, str(DEFAULT_PORT))
    if not key:
        return None
    key = encode_key(decode_key(key))
    if not written.isdigit() or not 0 < int(written) < 65536:
        raise ValueError(f"{written[:20]!r} is no port")
    return key, int(written)


def range_of(node: Object, version: int) -> str:
    """The node's podCIDR of an IP version, "" where it has none (yet)."""
    spec = node.get("spec") or {}
    ranges = spec.get("podCIDRs") or [spec.get("podCIDR") or ""]
    return next((text for text in ranges if text and (":" in text) == (version == 6)), "")


def _own(texts: Iterable[str], version: int) -> list[Any]:
    """A node has a link-local address for each pod's link; they are nobody's InternalIP."""
    parsed = {ipaddress.ip_address(text) for text in texts}
    return sorted(one for one in parsed if one.version == version and not one.is_link_local)


class _Claims:
    """Whose pods an address is for, found without a look at each of some hundred nodes."""

    def __init__(self) -> None:
        self._by_length: dict[int, dict[int, tuple[str, str]]] = {}  # free bits → network's number → owner

    def add(self, name: str, network: Any) -> None:
        free = network.max_prefixlen - network.prefixlen
        starts = self._by_length.setdefault(free, {})
        starts.setdefault(int(network.network_address) >> free, (name, str(network)))

    def of(self, address: Any) -> tuple[str, str] | None:
        number = int(address)
        found = (starts.get(number >> free) for free, starts in self._by_length.items())
        return next((owner for owner in found if owner), None)


def _way(mode: str, address: str, near: Any) -> tuple[bool, str]:
    if mode != "auto":
        return mode == "vxlan", f"it was asked for (--pod-routes {mode})"
    if near is not None:
        return False, f"{address} is on our own segment {near}"
    return True, f"{address} lies behind a router"


def _internal_ip(node: Object, version: int) -> str | None:
    for entry in (node.get("status") or {}).get("addresses") or ():
        if entry.get("type") == "InternalIP":
            try:
                address = ipaddress.ip_address(entry["address"])
            except ValueError:
                continue
            if address.version == version:
                return str(address)
    return None
