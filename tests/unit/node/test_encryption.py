"""Which nodes are in the tunnel, and what the kernel must be told of them."""

from __future__ import annotations

import base64

from cni.wireguard import DeviceState, Endpoint, PeerChange, PeerState
from kubelet_py.node.encryption import STALE_SECONDS, TunnelPeer, announcement, changes, tunnel_peers
from kubelet_py.node.peers import KEY, PORT, Peer, end_of_tunnel

ONE, TWO = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
HERE, THERE = Endpoint("192.0.2.1", 51820), Endpoint("192.0.2.9", 51820)
NOBODY: frozenset[str] = frozenset()
NOW = 1_700_000_000.0


def device(*peers: PeerState) -> DeviceState:
    return DeviceState("", b"", 51820, 0, peers)


def test_what_a_node_announces_is_what_the_others_read() -> None:
    notes = announcement(ONE, 4711)
    assert end_of_tunnel({"metadata": {"annotations": notes}}) == (ONE, 4711)
    assert announcement("", 51820) == {KEY: None, PORT: None}
    assert end_of_tunnel({"metadata": {}}) is None


def test_a_node_is_one_peer_with_its_addresses_of_both_versions() -> None:
    four = Peer("b", "10.244.1.0/24", "192.0.2.1", False, "", ONE, 51820)
    six = Peer("b", "fd00:1::/64", "2001:db8::1", False, "", ONE, 51820)
    clear = Peer("c", "10.244.2.0/24", "192.0.2.2", True, "")
    allowed = ("10.244.1.0/24", "192.0.2.1/32", "2001:db8::1/128", "fd00:1::/64")
    assert tunnel_peers([[four, clear], [six]]) == (TunnelPeer(ONE, HERE, allowed),)
    (first_six,) = tunnel_peers([[six], [four]])
    assert first_six.endpoint == Endpoint("2001:db8::1", 51820)


def test_only_what_differs_is_told() -> None:
    peer = TunnelPeer(ONE, HERE, ("10.244.1.0/24",))
    there = PeerState(ONE, HERE, frozenset({"10.244.1.0/24"}))
    assert changes(device(there), [peer], NOBODY, NOW) == []
    assert changes(device(), [peer], NOBODY, NOW) == [PeerChange(ONE, HERE, peer.allowed)]
    assert changes(device(there), [], NOBODY, NOW) == [PeerChange(ONE, remove=True)]
    less = PeerState(ONE, HERE, frozenset())
    assert changes(device(less), [peer], NOBODY, NOW) == [PeerChange(ONE, None, peer.allowed)]


def test_a_node_with_a_new_key_is_another_peer() -> None:
    old = PeerState(ONE, HERE, frozenset({"10.244.1.0/24"}), NOW)
    new = TunnelPeer(TWO, HERE, ("10.244.1.0/24",))
    assert changes(device(old), [new], NOBODY, NOW) == [
        PeerChange(ONE, remove=True),  # first: two peers cannot have the same range
        PeerChange(TWO, HERE, new.allowed),
    ]


def test_a_session_that_works_keeps_the_endpoint_that_the_kernel_found() -> None:
    peer = TunnelPeer(ONE, HERE, ("10.244.1.0/24",))
    allowed = frozenset(peer.allowed)
    alive = PeerState(ONE, THERE, allowed, NOW - STALE_SECONDS + 1)
    assert changes(device(alive), [peer], NOBODY, NOW) == []
    told = [PeerChange(ONE, HERE, peer.allowed)]
    assert changes(device(alive), [peer], frozenset({ONE}), NOW) == told, "its Node has another address"
    dead = PeerState(ONE, THERE, allowed, NOW - STALE_SECONDS - 1)
    assert changes(device(dead), [peer], NOBODY, NOW) == told
