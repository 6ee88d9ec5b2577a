"""A network's VLANs: what is accepted, and the messages as uapi linux/if_bridge.h lays them out."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from cni.bridge import BridgeConfig
from cni.errors import InvalidConfig
from cni.vlans import (
    PVID,
    UNTAGGED,
    PortVlans,
    add_vlans,
    filter_vlans,
    gateway_name,
    read_vlans,
    remove_vlans,
)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"vlan": 100}, PortVlans(100)),
        ({"vlan": 100, "preserveDefaultVlan": False}, PortVlans(100, (), False)),
        ({"vlan": 0, "vlanTrunk": []}, PortVlans()),
        ({"vlanTrunk": [{"id": 7}, {"minID": 5, "maxID": 7}]}, PortVlans(0, (5, 6, 7))),
        ({"vlanTrunk": [{"id": 9, "minID": 1, "maxID": 1}]}, PortVlans(0, (1, 9))),
    ],
)
def test_what_is_accepted(config: dict[str, Any], wanted: PortVlans) -> None:
    assert PortVlans.parse(config) == wanted
    assert BridgeConfig.parse({"name": "n", **config}).vlans == wanted


def test_a_network_without_vlans_has_none() -> None:
    for config in ({}, {"vlan": 0}, {"preserveDefaultVlan": False}):
        assert BridgeConfig.parse({"name": "n", **config}).vlans is None


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"vlan": 4095}, "vlan 4095"),
        ({"vlan": -1}, "vlan -1"),
        ({"vlan": "100"}, "vlan '100'"),
        ({"vlan": True}, "vlan True"),
        ({"vlan": 5, "vlanTrunk": [{"id": 6}]}, "vlan and vlanTrunk at the same time"),
        ({"vlan": 5, "preserveDefaultVlan": "no"}, "preserveDefaultVlan 'no'"),
        ({"vlanTrunk": {"id": 1}}, "a list"),
        ({"vlanTrunk": [7]}, "7 in vlanTrunk"),
        ({"vlanTrunk": [{"id": 0}]}, "id 0"),
        ({"vlanTrunk": [{"id": 4095}]}, "id 4095"),
        ({"vlanTrunk": [{"minID": 5}]}, "belong together"),
        ({"vlanTrunk": [{"maxID": 5}]}, "belong together"),
        ({"vlanTrunk": [{"minID": 6, "maxID": 5}]}, "minID is above maxID"),
        ({"vlanTrunk": [{"minID": 0, "maxID": 5}]}, "minID 0"),
        ({"vlanTrunk": [{"minID": 1, "maxID": 5000}]}, "maxID 5000"),
    ],
)
def test_what_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        BridgeConfig.parse({"name": "n", **config})


def test_an_access_port_gets_its_vlan_without_tag() -> None:
    message = add_vlans(9, PortVlans(100).wanted)
    assert message.kind == 19
    spec = attribute(0, b"\1\0") + attribute(2, struct.pack("=HH", PVID | UNTAGGED, 100))
    head = bytes.fromhex("07000000" "09000000" "00000000" "00000000")  # fmt: skip
    assert message.body == head + attribute(26, spec)


def test_neighbours_of_a_trunk_are_sent_as_a_range() -> None:
    body = add_vlans(1, PortVlans(0, (5, 6, 7, 20)).wanted).body
    pairs = [struct.pack("=HH", *pair) for pair in ((8, 5), (16, 7), (0, 20))]
    assert body[20:] == attribute(0, b"\1\0") + b"".join(attribute(2, pair) for pair in pairs)
    everything = add_vlans(1, PortVlans(0, tuple(range(1, 4095))).wanted).body
    assert len(everything) < 100
    gone = remove_vlans(1, [1])
    assert gone.kind == 17 and gone.body.endswith(attribute(2, struct.pack("=HH", 0, 1)))


def test_filtering_is_one_bit_of_the_bridge() -> None:
    body = filter_vlans(3).body
    assert body[16:] == attribute(18, attribute(1, b"bridge\0") + attribute(2, attribute(7, b"\1")))


def test_a_port_s_vlans_are_read() -> None:
    infos = [attribute(2, struct.pack("=HH", *pair)) for pair in ((4, 1), (6, 100))]
    head = struct.pack("=BxHiII", 7, 1, 9, 0, 0)
    payload = head + attribute(3, b"veth0\0") + attribute(26, b"".join(infos))
    assert read_vlans(payload) == (9, {1: UNTAGGED, 100: PVID | UNTAGGED})


def test_a_gateway_is_called_after_bridge_and_vlan() -> None:
    assert gateway_name("kpy0", 4094) == "kpy0.4094"
    with pytest.raises(InvalidConfig, match="over 15 letters"):
        gateway_name("kpy123abc-xy", 100)
