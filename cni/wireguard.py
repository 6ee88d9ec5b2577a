"""PURE. WireGuard devices as netlink messages: the link, its key and port, its peers and what they did.

A device is made like any link; everything else about it is said and asked by generic netlink (uapi
linux/wireguard.h). From a peer's `allowed` prefixes the kernel accepts packets of it, and to those it sends
by it: routing and authentication are one table. A public key is the kernel's to work out from the private one
(X25519), so no library is needed. A dump spreads a large device over several messages, and one peer's
prefixes too: parts of one peer follow each other under its key.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cni.genetlink import elements, nested
from cni.rtnetlink import (
    F_CREATE,
    F_EXCL,
    IFF_UP,
    IFLA_IFNAME,
    IFLA_LINKINFO,
    IFLA_MTU,
    INFO_KIND,
    RTM_NEWLINK,
    Message,
    attribute,
    attributes,
    ifinfo,
    text,
    u32,
)

FAMILY, VERSION = "wireguard", 1
CMD_GET_DEVICE, CMD_SET_DEVICE = 0, 1
A_IFNAME, A_PRIVATE_KEY, A_PUBLIC_KEY, A_LISTEN_PORT, A_FWMARK, A_PEERS = 2, 3, 4, 6, 7, 8
P_PUBLIC_KEY, P_FLAGS, P_ENDPOINT, P_HANDSHAKE, P_RX, P_TX, P_ALLOWED = 1, 3, 4, 6, 7, 8, 9
P_F_REMOVE, P_F_REPLACE_ALLOWED = 1, 2
IP_FAMILY, IP_ADDRESS, IP_LENGTH = 1, 2, 3
KEY_BYTES = 32
OVERHEAD = 80  # bytes: outer IPv6 (40), UDP (8), WireGuard (32); 60 would do with IPv4
PEERS_AT_ONCE = 100  # one attribute holds 64 KiB


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


@dataclass(frozen=True, slots=True)
class PeerState:
    """A peer as the kernel has it; `handshake` is in seconds since the epoch, 0 before the first."""

    key: str
    endpoint: Endpoint | None
    allowed: frozenset[str]
    handshake: float = 0.0
    received: int = 0
    sent: int = 0


@dataclass(frozen=True, slots=True)
class DeviceState:
    public_key: str
    private_key: bytes
    port: int
    mark: int
    peers: tuple[PeerState, ...]


@dataclass(frozen=True, slots=True)
class PeerChange:
    """`allowed` takes the place of what was allowed before; without `endpoint` that stays as it is."""

    key: str
    endpoint: Endpoint | None = None
    allowed: tuple[str, ...] = ()
    remove: bool = False


def new_private_key() -> bytes:
    """A random key with the bits set that X25519 sets anyway (RFC 7748, 5), as `wg genkey` makes it."""
    key = bytearray(os.urandom(KEY_BYTES))
    key[0] &= 248
    key[31] = key[31] & 127 | 64
    return bytes(key)


def encode_key(key: bytes) -> str:
    return base64.b64encode(key).decode()


def decode_key(written: str) -> bytes:
    """Raises ValueError for what is no key."""
    try:
        key = base64.b64decode(written.strip(), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{written.strip()[:60]!r} is not base64") from error
    if len(key) != KEY_BYTES or key == bytes(KEY_BYTES):
        raise ValueError(f"{written.strip()[:60]!r} is not a key of {KEY_BYTES} bytes")
    return key


def new_wireguard(name: str, *, mtu: int) -> Message:
    """A device without key and peers, down: it must not listen before it has its port."""
    body = ifinfo() + text(IFLA_IFNAME, name) + u32(IFLA_MTU, mtu)
    body += attribute(IFLA_LINKINFO, text(INFO_KIND, "wireguard"))
    return Message(f"create WireGuard device {name}", RTM_NEWLINK, F_CREATE | F_EXCL, body)


def link_up(index: int, *, mtu: int) -> Message:
    body = ifinfo(index=index, flags=IFF_UP, change=IFF_UP) + u32(IFLA_MTU, mtu)
    return Message(f"set WireGuard device {index} up", RTM_NEWLINK, 0, body)


def set_identity(name: str, *, private_key: bytes, port: int, mark: int) -> bytes:
    """The body of CMD_SET_DEVICE for the device itself; its peers stay."""
    body = text(A_IFNAME, name) + attribute(A_PRIVATE_KEY, private_key)
    return body + attribute(A_LISTEN_PORT, struct.pack("=H", port)) + u32(A_FWMARK, mark)


def set_peers(name: str, changes: Sequence[PeerChange]) -> list[bytes]:
    """Bodies of CMD_SET_DEVICE, as many as the changes need; peers that are not named stay."""
    parts = [changes[at : at + PEERS_AT_ONCE] for at in range(0, len(changes), PEERS_AT_ONCE)]
    return [
        text(A_IFNAME, name) + nested(A_PEERS, b"".join(nested(0, _peer(change)) for change in part))
        for part in parts
    ]


def _peer(change: PeerChange) -> bytes:
    flags = P_F_REMOVE if change.remove else P_F_REPLACE_ALLOWED
    body = attribute(P_PUBLIC_KEY, decode_key(change.key)) + u32(P_FLAGS, flags)
    if change.remove:
        return body
    if change.endpoint is not None:
        body += attribute(P_ENDPOINT, _socket_address(change.endpoint))
    return body + nested(P_ALLOWED, b"".join(nested(0, _prefix(prefix)) for prefix in change.allowed))


def _socket_address(endpoint: Endpoint) -> bytes:
    address = ipaddress.ip_address(endpoint.address)
    port = struct.pack("!H", endpoint.port)
    if address.version == 4:
        return struct.pack("=H", socket.AF_INET) + port + address.packed + bytes(8)
    return struct.pack("=H", socket.AF_INET6) + port + bytes(4) + address.packed + bytes(4)


def _prefix(prefix: str) -> bytes:
    network = ipaddress.ip_network(prefix)
    family = socket.AF_INET6 if network.version == 6 else socket.AF_INET
    body = attribute(IP_FAMILY, struct.pack("=H", family))
    body += attribute(IP_ADDRESS, network.network_address.packed)
    return body + attribute(IP_LENGTH, bytes([network.prefixlen]))


def ask(name: str) -> bytes:
    """The body of CMD_GET_DEVICE."""
    return text(A_IFNAME, name)


def read_device(messages: Iterable[bytes]) -> DeviceState:
    """The device from all messages of one dump."""
    first: dict[int, bytes] = {}
    peers: dict[str, PeerState] = {}
    for message in messages:
        parts = attributes(message)
        first = first or parts
        for body in elements(parts.get(A_PEERS, b"")):
            peer = _read_peer(body)
            known = peers.get(peer.key)
            peers[peer.key] = replace(known, allowed=known.allowed | peer.allowed) if known else peer
    return DeviceState(
        public_key=encode_key(first.get(A_PUBLIC_KEY, b"")),
        private_key=first.get(A_PRIVATE_KEY, b""),
        port=_number(first.get(A_LISTEN_PORT)),
        mark=_number(first.get(A_FWMARK)),
        peers=tuple(peers.values()),
    )


def _read_peer(body: bytes) -> PeerState:
    parts = attributes(body)
    seconds, nanoseconds = struct.unpack("=qq", parts.get(P_HANDSHAKE, bytes(16)))
    return PeerState(
        key=encode_key(parts[P_PUBLIC_KEY]),
        endpoint=_read_endpoint(parts[P_ENDPOINT]) if P_ENDPOINT in parts else None,
        allowed=frozenset(_read_prefix(each) for each in elements(parts.get(P_ALLOWED, b""))),
        handshake=seconds + nanoseconds / 1e9,
        received=_number(parts.get(P_RX)),
        sent=_number(parts.get(P_TX)),
    )


def _read_endpoint(raw: bytes) -> Endpoint:
    (family,) = struct.unpack_from("=H", raw)
    (port,) = struct.unpack_from("!H", raw, 2)
    packed = raw[8:24] if family == socket.AF_INET6 else raw[4:8]
    return Endpoint(str(ipaddress.ip_address(packed)), port)


def _read_prefix(body: bytes) -> str:
    parts = attributes(body)
    return f"{ipaddress.ip_address(parts[IP_ADDRESS])}/{parts[IP_LENGTH][0]}"


def _number(raw: bytes | None) -> int:
    return int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big") if raw else 0
