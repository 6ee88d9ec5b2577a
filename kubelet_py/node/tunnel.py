"""The node's end of the encrypted tunnel: a WireGuard device with its key, kept as the Node objects ask.

The private key lies in `<state>/wireguard.key`, for root only; a node that has lost it makes another and
announces that, and the others follow. The kernel works out the public key. One device serves both IP
versions; routes into it are peer_routes.py's. What the device sends carries a mark, by which rules of the
node's owner can tell encrypted packets from others.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cni.errors import NetlinkError
from cni.genetlink import GenericNetlink
from cni.netlink import Netlink
from cni.wireguard import (
    CMD_GET_DEVICE,
    CMD_SET_DEVICE,
    FAMILY,
    OVERHEAD,
    VERSION,
    DeviceState,
    ask,
    decode_key,
    encode_key,
    link_up,
    new_private_key,
    new_wireguard,
    read_device,
    set_identity,
    set_peers,
)
from kubelet_py.errors import ConfigError
from kubelet_py.node.bootstrap import write_private
from kubelet_py.node.encryption import TunnelPeer, changes
from kubelet_py.node.peers import DEFAULT_PORT
from kubelet_py.node.routes import TUNNEL
from kubelet_py.paths import NodePaths

log = logging.getLogger(__name__)

MARK = 0x4B0000  # above the bits that kube-proxy and portmap use
LOOK_SECONDS = 30.0


def key_file(paths: NodePaths) -> Path:
    return paths.state / "wireguard.key"


def open_generic() -> GenericNetlink:
    return GenericNetlink(FAMILY, VERSION)


def read_kernel(open_wireguard: Callable[[], GenericNetlink] = open_generic) -> DeviceState:
    """The device as it is. Raises NetlinkError: ENOENT or ENODEV where there is none, EPERM without root."""
    with open_wireguard() as channel:
        return read_device(channel.ask(CMD_GET_DEVICE, ask(TUNNEL)))


class Tunnel:
    """`start` makes the device, `update` tells it the peers, `look` repairs both now and then."""

    def __init__(
        self,
        file: Path,
        *,
        address: str,
        port: int = DEFAULT_PORT,
        open_netlink: Callable[[], Netlink] = Netlink,
        open_wireguard: Callable[[], GenericNetlink] = open_generic,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._file = file
        self._address = address
        self.port = port
        self._open = open_netlink
        self._open_wireguard = open_wireguard
        self._clock, self._wall = clock, wall
        self._lock = threading.Lock()
        self._key = b""
        self.public_key = ""
        self._peers: tuple[TunnelPeer, ...] = ()
        self._told = False  # the peers are known: those in the kernel that are not among them go
        self._due = 0.0

    def start(self) -> None:
        """The key, and the device with it; a device of an earlier agent keeps its sessions.

        Raises ConfigError where the kernel refuses.
        """
        self._key = self._kept_key()
        try:
            with self._open() as netlink:
                self._device(netlink)
        except (NetlinkError, OSError) as error:
            raise ConfigError(
                f"Could not encrypt packets between nodes: {error} (modprobe wireguard, or choose other "
                "--pod-routes: auto, direct or vxlan)"
            ) from error
        log.info("Made tunnel device=%s port=%d key=%s", TUNNEL, self.port, self.public_key)

    def update(self, peers: tuple[TunnelPeer, ...]) -> None:
        """These are the nodes at the other end; those whose endpoint is new are told of it at once."""
        with self._lock:
            if self._told and peers == self._peers:
                return
            before = {peer.key: peer.endpoint for peer in self._peers}
            moved = {p.key for p in peers if self._told and before.get(p.key) != p.endpoint}
            self._peers, self._told = peers, True
            try:
                for words in self._tell(frozenset(moved)):
                    log.info("Changed tunnel %s", words)
            except (NetlinkError, OSError) as error:
                log.error("Failed to tell the tunnel its peers err=%s retry_s=%.0f", error, LOOK_SECONDS)
                self._due = self._clock() + LOOK_SECONDS

    def look(self) -> bool:
        """Every half minute: make good what somebody else has changed; whether the device was."""
        device = False
        with self._lock:
            now = self._clock()
            if now < self._due:
                return False
            self._due = now + LOOK_SECONDS
            try:
                with self._open() as netlink:
                    device = self._device(netlink) > 0
                repaired = ["device"] if device else []
                repaired += self._tell(frozenset()) if self._told else []
                if repaired:
                    log.warning("Repaired tunnel what=%s", ", ".join(repaired))
            except (NetlinkError, OSError) as error:
                log.error("Failed to repair the tunnel err=%s", error)
        return device

    def _kept_key(self) -> bytes:
        try:
            return decode_key(self._file.read_text())
        except FileNotFoundError:
            log.info("Made a key for the tunnel file=%s", self._file)
        except (OSError, ValueError) as error:
            log.warning("Made a new key for the tunnel, the old one cannot be read error=%s", error)
        key = new_private_key()
        write_private(self._file, encode_key(key).encode() + b"\n")
        return key

    def _device(self, netlink: Netlink) -> int:
        """The device with MTU, key, port and mark, up; how many acts that took."""
        acts = 0
        mtu = self._mtu(netlink)
        link = netlink.link(TUNNEL)
        if link is not None and link.kind != "wireguard":
            raise NetlinkError(f"use {TUNNEL}, a {link.kind or 'device'}, as the tunnel", errno.EEXIST)
        if link is None:
            netlink.batch([new_wireguard(TUNNEL, mtu=mtu)])
            link, acts = netlink.require(TUNNEL), 1
        with self._open_wireguard() as channel:
            state = read_device(channel.ask(CMD_GET_DEVICE, ask(TUNNEL)))
            if (state.private_key, state.port, state.mark) != (self._key, self.port, MARK):
                body = set_identity(TUNNEL, private_key=self._key, port=self.port, mark=MARK)
                channel.tell("set the tunnel's key", CMD_SET_DEVICE, [body])
                state = read_device(channel.ask(CMD_GET_DEVICE, ask(TUNNEL)))
                acts += 1
        self.public_key = state.public_key
        if not link.up or link.mtu != mtu:
            netlink.batch([link_up(link.index, mtu=mtu)])
            acts += 1
        return acts

    def _mtu(self, netlink: Netlink) -> int:
        entries = netlink.addresses()
        index = next((e.index for e in entries if e.address.partition("/")[0] == self._address), None)
        uplink = netlink.link(index) if index is not None else None
        if uplink is None:
            raise NetlinkError(f"find the interface with {self._address}", errno.EADDRNOTAVAIL)
        return uplink.mtu - OVERHEAD

    def _tell(self, moved: frozenset[str]) -> list[str]:
        """Bring the kernel's peers to ours; what was done, in words."""
        with self._open_wireguard() as channel:
            state = read_device(channel.ask(CMD_GET_DEVICE, ask(TUNNEL)))
            acts = changes(state, self._peers, moved, self._wall())
            channel.tell("set the tunnel's peers", CMD_SET_DEVICE, set_peers(TUNNEL, acts))
        return [
            f"peer={act.key} removed" if act.remove else f"peer={act.key} allowed={','.join(act.allowed)}"
            for act in acts
        ]


def remove(open_netlink: Callable[[], Netlink] = Netlink) -> None:
    """Take a tunnel away that a node had before it was told to use none; its routes go with it."""
    with open_netlink() as netlink:
        link = netlink.link(TUNNEL)
        if link is not None and link.kind == "wireguard":
            netlink.delete_link(TUNNEL)
            log.info("Removed tunnel device=%s", TUNNEL)


def opened(mode: str, paths: NodePaths, address: str, port: int) -> Tunnel | None:
    """Our end of it, which other nodes hear of by our Node; None if the mode is another one, and what an
    earlier one left is taken away. Raises ConfigError."""
    if mode != "wireguard":
        remove()
        return None
    made = Tunnel(key_file(paths), address=address, port=port)
    made.start()
    return made
