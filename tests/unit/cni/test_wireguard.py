"""WireGuard's messages, byte by byte as uapi linux/wireguard.h and linux/genetlink.h lay them out."""

from __future__ import annotations

import base64
import socket
import struct

import pytest

from cni import genetlink
from cni.wireguard import (
    PEERS_AT_ONCE,
    DeviceState,
    Endpoint,
    PeerChange,
    PeerState,
    decode_key,
    encode_key,
    new_private_key,
    read_device,
    set_identity,
    set_peers,
)

KEYS = [base64.b64encode(bytes([n]) * 32).decode() for n in range(1, 4)]


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def test_a_device_s_own_values() -> None:
    body = set_identity("kpywg0", private_key=b"k" * 32, port=51820, mark=0x4B0000)
    assert body.hex() == (
        "0b000200" + b"kpywg0\0".hex() + "00"  # WGDEVICE_A_IFNAME
        "24000300" + "6b" * 32  # WGDEVICE_A_PRIVATE_KEY
        + "06000600" + "6cca" + "0000"  # WGDEVICE_A_LISTEN_PORT
        + "08000700" + "00004b00"  # WGDEVICE_A_FWMARK
    )  # fmt: skip


def test_a_peer_that_is_set_and_one_that_goes() -> None:
    peer = PeerChange(KEYS[0], Endpoint("192.0.2.7", 51820), ("10.244.1.0/24", "fd00::/64"))
    (body,) = set_peers("w", [peer, PeerChange(KEYS[1], remove=True)])
    four = "06000100" "02000000" "08000200" "0af40100" "05000300" "18000000"  # fmt: skip
    six = "06000100" "0a000000" "14000200" "fd" + "00" * 15 + "05000300" "40000000"  # fmt: skip
    allowed = f"1c000080{four}" + f"28000080{six}"
    first = "24000100" + "01" * 32 + "08000300" "02000000"  # WGPEER_F_REPLACE_ALLOWEDIPS
    first += "14000400" "0200" "ca6c" "c0000207" + "00" * 8  # sockaddr_in
    first += "48000980" + allowed
    second = "24000100" + "02" * 32 + "08000300" "01000000"  # WGPEER_F_REMOVE_ME
    assert body.hex() == "06000200" "77000000" + "c0000880" + "8c000080" + first + "30000080" + second


def test_an_endpoint_of_ipv6_and_none() -> None:
    (body,) = set_peers("w", [PeerChange(KEYS[0], Endpoint("2001:db8::7", 1))])
    assert bytes.fromhex("20000400" "0a00" "0001" "00000000" "20010db8") in body  # fmt: skip
    (body,) = set_peers("w", [PeerChange(KEYS[0])])
    assert b"\x00\x04\x00\x0a\x00" not in body


def test_many_peers_take_several_messages_each_below_what_an_attribute_holds() -> None:
    keys = [base64.b64encode(n.to_bytes(32, "big")).decode() for n in range(1, 1002)]
    far = Endpoint("2001:db8::1", 51820)
    allowed = ("fd00:1::/64", "2001:db8::1/128", "10.0.0.0/24", "192.0.2.1/32")
    many = [PeerChange(key, far, allowed) for key in keys]
    bodies = set_peers("kpywg0", many)
    assert len(bodies) == -(-1001 // PEERS_AT_ONCE) and max(map(len, bodies)) < 65536
    assert set_peers("kpywg0", []) == []


def peer_attributes(key: str, *prefixes: bytes, more: bytes = b"") -> bytes:
    allowed = attribute(9 | 0x8000, b"".join(attribute(0x8000, prefix) for prefix in prefixes))
    return attribute(0x8000, attribute(1, decode_key(key)) + more + allowed)


def prefix(packed: bytes, length: int) -> bytes:
    family = socket.AF_INET if len(packed) == 4 else socket.AF_INET6
    return attribute(1, struct.pack("=H", family)) + attribute(2, packed) + attribute(3, bytes([length]))


def test_a_device_is_read_from_several_messages_with_a_peer_in_two() -> None:
    counted = attribute(6, struct.pack("=qq", 1700000000, 500_000_000))
    counted += attribute(7, struct.pack("=Q", 1 << 33)) + attribute(8, struct.pack("=Q", 7))
    far = struct.pack("=H", 2) + struct.pack("!H", 51820) + bytes([192, 0, 2, 7]) + bytes(8)
    counted += attribute(4, far)
    ten = prefix(bytes([10, 244, 1, 0]), 24)
    six = prefix(bytes.fromhex("fd00" + "00" * 14), 64)
    head = attribute(3, b"p" * 32) + attribute(4, decode_key(KEYS[2]))
    head += attribute(6, struct.pack("=H", 51820)) + attribute(7, struct.pack("=I", 75))
    first = head + attribute(8 | 0x8000, peer_attributes(KEYS[0], ten, more=counted))
    rest = peer_attributes(KEYS[0], six) + peer_attributes(KEYS[1])
    second = attribute(2, b"kpywg0\0") + attribute(8 | 0x8000, rest)
    both = frozenset({"10.244.1.0/24", "fd00::/64"})
    assert read_device([first, second]) == DeviceState(
        KEYS[2], b"p" * 32, 51820, 75,
        (
            PeerState(KEYS[0], Endpoint("192.0.2.7", 51820), both, 1700000000.5, 1 << 33, 7),
            PeerState(KEYS[1], None, frozenset()),
        ),
    )  # fmt: skip


def test_a_private_key_is_one_of_x25519() -> None:
    keys = {new_private_key() for _ in range(50)}
    assert len(keys) == 50
    assert all(len(k) == 32 and k[0] & 7 == 0 and k[31] & 0xC0 == 0x40 for k in keys)
    assert decode_key(encode_key(b"x" * 32) + "\n") == b"x" * 32


@pytest.mark.parametrize("written", ["", "é", "AAAA", base64.b64encode(bytes(33)).decode()])
def test_what_is_no_key_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        decode_key(written)


def test_parts_of_the_kernel_are_found_by_name() -> None:
    def told(name: bytes, number: int) -> bytes:
        return genetlink.command(1, 2) + attribute(1, struct.pack("=H", number)) + attribute(2, name + b"\0")

    both = [told(b"nlctrl", 16), told(b"wireguard", 29)]
    assert genetlink.families(both) == {"nlctrl": 16, "wireguard": 29}


def test_the_elements_of_an_array_all_have_one_number() -> None:
    assert genetlink.elements(attribute(0, b"abc") + attribute(0, b"d")) == [b"abc", b"d"]
    assert genetlink.elements(b"\x02\0\0\0") == []
