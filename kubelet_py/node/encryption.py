"""PURE. Which nodes' packets are encrypted, and what the tunnel must know of them, from their Node objects.

A node that encrypts announces its WireGuard key and port on its Node, which only the node itself and
administrators may change. Two nodes that both announce a key talk in the tunnel: pods to pods, pods to the
other node and the node to the other's pods. A node without a key is reached in the clear, as with Calico and
Cilium (but for its strict mode): a cluster can be moved to encryption node by node.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cni.wireguard import DeviceState, Endpoint, PeerChange
from kubelet_py.node.peers import KEY, PORT, Peer

STALE_SECONDS = 180.0  # WireGuard's own REJECT_AFTER_TIME: no session is older


def announcement(key: str, port: int) -> dict[str, str | None]:
    """Annotations of the own Node; None takes one away."""
    return {KEY: key or None, PORT: str(port) if key else None}


@dataclass(frozen=True, slots=True)
class TunnelPeer:
    """A node at the other end: where its encrypted packets go, and which addresses are behind it."""

    key: str
    endpoint: Endpoint
    allowed: tuple[str, ...]


def tunnel_peers(versions: Sequence[Iterable[Peer]]) -> tuple[TunnelPeer, ...]:
    """One for each key, from the peers of each IP version; the first version's address is the endpoint."""
    found: dict[str, TunnelPeer] = {}
    for peers in versions:
        for peer in peers:
            if not peer.key:
                continue
            host = f"{peer.address}/{128 if ':' in peer.address else 32}"
            known = found.get(peer.key)
            endpoint = known.endpoint if known else Endpoint(peer.address, peer.port)
            allowed = {peer.pod_cidr, host, *(known.allowed if known else ())}
            found[peer.key] = TunnelPeer(peer.key, endpoint, tuple(sorted(allowed)))
    return tuple(found[key] for key in sorted(found))


def changes(
    device: DeviceState, wanted: Sequence[TunnelPeer], moved: frozenset[str], now: float
) -> list[PeerChange]:
    """What to tell the kernel. A session that works may have another endpoint than the announced one (the
    kernel follows authentic packets), and keeps it, unless its node is among `moved`.
    """
    present = {peer.key: peer for peer in device.peers}
    needed = {peer.key for peer in wanted}
    acts = [PeerChange(key, remove=True) for key in sorted(set(present) - needed)]
    for peer in wanted:
        known = present.get(peer.key)
        stale = known is None or now - known.handshake > STALE_SECONDS
        elsewhere = known is None or known.endpoint != peer.endpoint
        astray = elsewhere and (stale or peer.key in moved)
        if known is None or astray or known.allowed != frozenset(peer.allowed):
            acts.append(PeerChange(peer.key, peer.endpoint if astray else None, peer.allowed))
    return acts
