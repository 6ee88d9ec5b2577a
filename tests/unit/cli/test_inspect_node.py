"""What `status` and `inspect node` say of the tunnel."""

from __future__ import annotations

from cni.wireguard import DeviceState, Endpoint, PeerState
from kubelet_py.cli.inspect_node import summary, told

NOW = 1_700_000_000.0


def peer(handshake: float) -> PeerState:
    return PeerState("k", Endpoint("2001:db8::1", 51820), frozenset({"b/1", "a/1"}), handshake, 5, 7)


def test_a_peer_is_told_with_its_handshake_and_counters() -> None:
    assert told(peer(NOW - 12), NOW) == {
        "endpoint": "[2001:db8::1]:51820",
        "allowed": ["a/1", "b/1"],
        "handshake": "12 s ago",
        "received": 5,
        "sent": 7,
    }
    assert told(peer(0), NOW)["handshake"] == "never"


def test_a_session_is_not_older_than_three_minutes() -> None:
    peers = (peer(NOW - 180), peer(NOW - 181), peer(0))
    said = summary(DeviceState("pub", b"", 51821, 0, peers), NOW)
    assert said == "WireGuard on kpywg0, port 51821, key pub; 1 of 3 peers with a session"
