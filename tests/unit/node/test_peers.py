from __future__ import annotations

import argparse
import base64
from typing import Any

import pytest

from kubelet_py.node.peers import KEY, PORT, Peer, mode, overlay_mac, peers, port, range_of


def node(name: str, cidr: str | None, *addresses: str) -> dict[str, Any]:
    announced = [{"type": "InternalIP", "address": address} for address in addresses]
    return {
        "metadata": {"name": name},
        "spec": {"podCIDR": cidr} if cidr else {},
        "status": {"addresses": [{"type": "Hostname", "address": name}, *announced]},
    }


ME = node("me", "10.244.0.0/24", "192.0.2.10")
NEAR = node("near", "10.244.1.0/24", "192.0.2.11")
FAR = node("far", "10.244.2.0/24", "198.51.100.11")


def found(*nodes: dict[str, Any], mode: str = "auto") -> tuple[tuple[Peer, ...], tuple[str, ...]]:
    return peers([ME, *nodes], "me", "10.244.0.0/24", ["192.0.2.10/24"], mode)


def test_a_neighbour_directly_and_others_by_the_overlay() -> None:
    both, problems = found(NEAR, FAR)
    assert [(p.name, p.pod_cidr, p.address, p.overlay) for p in both] == [
        ("far", "10.244.2.0/24", "198.51.100.11", True),
        ("near", "10.244.1.0/24", "192.0.2.11", False),
    ]
    assert [p.reason for p in both] == [
        "198.51.100.11 lies behind a router",
        "192.0.2.11 is on our own segment 192.0.2.0/24",
    ]
    assert problems == ()


@pytest.mark.parametrize(("mode", "overlay"), [("direct", False), ("vxlan", True)])
def test_what_was_asked_for_is_done(mode: str, overlay: bool) -> None:
    both, _ = found(NEAR, FAR, mode=mode)
    assert [p.overlay for p in both] == [overlay, overlay]


def test_nodes_without_a_range_wait() -> None:
    assert found(node("new", None, "192.0.2.12")) == ((), ())


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (node("thief", "10.244.0.0/25", "192.0.2.12"), "which overlaps with node me"),
        (node("odd", "10.244.9.0/24", "fd00::9"), "announces no InternalIP of IPv4"),
        (node("odd", "10.244.9.0/24", "nonsense"), "announces no InternalIP of IPv4"),
    ],
)
def test_nodes_that_cannot_be_reached_are_named(other: dict[str, Any], problem: str) -> None:
    left, problems = found(other, NEAR)
    assert [p.name for p in left] == ["near"]
    assert len(problems) == 1 and problem in problems[0] and other["metadata"]["name"] in problems[0]


def test_a_node_at_the_address_of_somebodys_pod_is_none() -> None:
    """By name before and after the one whose pod it would be, and with itself as that one."""
    for name in ("aaa", "zzz"):
        left, problems = found(NEAR, node(name, "10.244.7.0/24", "10.244.1.9"))
        assert [p.name for p in left] == ["near"]
        told = f"Node {name} announces 10.244.1.9, which is for pods of node near (10.244.1.0/24)"
        assert problems == (told,)
    left, problems = found(NEAR, node("self", "10.244.7.0/24", "10.244.7.9"))
    assert [p.name for p in left] == ["near"]
    assert problems == ("Node self announces 10.244.7.9, which is for pods of node self (10.244.7.0/24)",)


def test_a_range_with_this_nodes_own_address_is_nobodys() -> None:
    thief = node("thief", "192.0.2.0/28", "198.51.100.9")
    here = ["127.0.0.1", "192.0.2.10", "2001:db8::1"]
    left, problems = peers([ME, thief, FAR], "me", "10.244.0.0/24", ["192.0.2.10/24"], own_addresses=here)
    assert [p.name for p in left] == ["far"]
    told = "Node thief claims pods at 192.0.2.0/28, where this node's own address 192.0.2.10 lies"
    assert problems == (told,)


def test_a_range_that_is_refused_takes_no_other_nodes_address() -> None:
    """A wrong podCIDR that is the nodes' own segment must not cut all of them off."""
    bad = node("bad", "192.0.2.0/24", "192.0.2.99")
    here = ["192.0.2.10"]
    left, problems = peers([ME, bad, NEAR], "me", "10.244.0.0/24", ["192.0.2.10/24"], own_addresses=here)
    assert [p.name for p in left] == ["near"]
    assert problems == (
        "Node bad claims pods at 192.0.2.0/24, where this node's own address 192.0.2.10 lies",
    )


def test_of_two_with_one_range_the_first_by_name_has_it() -> None:
    left, problems = found(NEAR, node("zzz", "10.244.1.0/24", "192.0.2.13"))
    assert [p.name for p in left] == ["near"] and "overlaps with node near" in problems[0]


def test_the_overlay_follows_from_the_range() -> None:
    (peer,), _ = found(FAR)
    assert (peer.overlay_address, peer.mac) == ("10.244.2.0", "02:4b:0a:f4:02:00")
    assert overlay_mac("fd00:1::/64") != overlay_mac("fd00:2::/64")
    assert overlay_mac("fd00:1::/64").startswith("02:4b:")


def test_a_way_that_is_not_offered_is_refused() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'ipip' is none of auto"):
        mode("ipip")
    assert mode("vxlan") == "vxlan" and mode("wireguard") == "wireguard"


@pytest.mark.parametrize("text", ["0", "65536", "-1", "x", ""])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="no port number"):
        port(text)
    assert port("51821") == 51821


OWN, THEIRS = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))


def keyed(one: dict[str, Any], key: str = THEIRS, port: str = "51999") -> dict[str, Any]:
    return {**one, "metadata": {**one["metadata"], "annotations": {KEY: key, PORT: port}}}


def test_nodes_that_both_have_a_key_meet_in_the_tunnel_and_others_as_before() -> None:
    others = [keyed(FAR), NEAR]
    both, problems = peers([ME, *others], "me", "10.244.0.0/24", ["192.0.2.10/24"], "wireguard", OWN)
    far, near = both
    assert (far.way, far.key, far.port, far.overlay) == ("wireguard", THEIRS, 51999, False)
    assert near.way == "direct" and near.reason.endswith("announces no key, so its packets are not encrypted")
    assert problems == ()
    behind, _ = peers([FAR], "me", "10.244.0.0/24", ["192.0.2.10/24"], "wireguard", OWN)
    assert behind[0].way == "vxlan"


def test_a_node_that_does_not_encrypt_does_not_look_at_keys() -> None:
    (far,), _ = found(keyed(FAR))
    assert (far.way, far.key) == ("vxlan", "")


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        (keyed(FAR, "no base64"), "is not base64"),
        (keyed(FAR, base64.b64encode(bytes(31)).decode()), "is not a key of 32 bytes"),
        (keyed(FAR, base64.b64encode(bytes(32)).decode()), "is not a key of 32 bytes"),
        (keyed(FAR, OWN), "announces the key of node me"),
        (keyed(FAR, THEIRS, "0"), "'0' is no port"),
        (keyed(FAR, THEIRS, "x"), "'x' is no port"),
    ],
)
def test_a_node_with_a_key_that_cannot_be_is_left_out(other: dict[str, Any], problem: str) -> None:
    """Not reached in the clear: it means to encrypt."""
    left, problems = peers([other, NEAR], "me", "10.244.0.0/24", ["192.0.2.10/24"], "wireguard", OWN)
    assert [peer.name for peer in left] == ["near"]
    assert len(problems) == 1 and problem in problems[0] and problems[0].startswith("Node far ")


def test_of_two_with_one_key_the_first_by_name_has_it() -> None:
    left, problems = peers([keyed(NEAR), keyed(FAR)], "me", "10.244.0.0/24", [], "wireguard", OWN)
    assert [peer.name for peer in left] == ["far"] and "announces the key of node far" in problems[0]


def other_spelling(key: str) -> str:
    """Of the last character before "=" base64 reads four bits of six."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    spelled = key[:-2] + alphabet[alphabet.index(key[-2]) + 1] + "="
    assert spelled != key and base64.b64decode(spelled) == base64.b64decode(key)
    return spelled


def test_another_spelling_of_a_key_is_the_same_key() -> None:
    (far,), problems = peers(
        [keyed(FAR, other_spelling(THEIRS))], "me", "10.244.0.0/24", [], "wireguard", OWN
    )
    assert (far.key, problems) == (THEIRS, ())
    both = [
        keyed(NEAR, other_spelling(THEIRS)),
        keyed(FAR),
        keyed(node("x", "10.1.0.0/24", "192.0.2.9"), OWN),
    ]
    left, problems = peers(both, "me", "10.244.0.0/24", [], "wireguard", OWN)
    assert [peer.name for peer in left] == ["far"]
    assert problems == ("Node near announces the key of node far", "Node x announces the key of node me")


def since(one: dict[str, Any], year: int) -> dict[str, Any]:
    return {**one, "metadata": {**one["metadata"], "creationTimestamp": f"{year}-01-01T00:00:00Z"}}


def tunnelled(*nodes: dict[str, Any]) -> tuple[list[str], tuple[str, ...]]:
    left, problems = peers([ME, *nodes], "me", "10.244.0.0/24", ["192.0.2.10/24"], "wireguard", OWN)
    return [f"{peer.name} {peer.way}" for peer in left], problems


THIRD = base64.b64encode(bytes([3]) * 32).decode()


def test_the_older_node_has_the_key_that_two_announce() -> None:
    far, near = since(keyed(FAR), 2026), since(keyed(NEAR), 2025)
    assert tunnelled(far, near) == (["near wireguard"], ("Node far announces the key of node near",))


def test_the_older_node_has_the_address_that_two_announce() -> None:
    thief = node("a-thief", "10.244.7.0/24", "198.51.100.11")
    told = ("Node a-thief announces 198.51.100.11, the address of node far",)
    far = since(keyed(FAR), 2025)
    assert tunnelled(far, since(keyed(thief, THIRD), 2026)) == (["far wireguard"], told)
    # Without a key, too: the overlay's route to that address would take the place of the tunnel's.
    assert tunnelled(far, since(thief, 2026)) == (["far wireguard"], told)
    assert tunnelled(far, since(keyed(thief, THIRD), 2024))[0] == ["a-thief wireguard"]


def test_who_loses_an_address_of_one_ip_version_is_left_out_in_the_other() -> None:
    far = since(keyed(node("far", "fd00:1::/64", "198.51.100.11")), 2025)
    six = since(keyed(node("six", "fd00:2::/64", "2001:db8::12", "198.51.100.11"), THIRD), 2026)
    left, problems = peers([far, six], "me", "fd00::/64", [], "wireguard", OWN)
    assert left == () and problems[1] == "Node six announces 198.51.100.11, the address of node far"


def test_an_address_twice_is_no_matter_where_nobody_encrypts() -> None:
    twin = node("twin", "10.244.7.0/24", "198.51.100.11")
    assert [peer.name for peer in found(keyed(FAR), keyed(twin))[0]] == ["far", "twin"]
    assert tunnelled(FAR, twin) == (["far vxlan", "twin vxlan"], ())


@pytest.mark.parametrize("address", ["192.0.2.10", "203.0.113.5", "10.244.0.9"])
@pytest.mark.parametrize("own_key", ["", OWN])
def test_an_address_of_our_own_leads_to_nobody_else(address: str, own_key: str) -> None:
    thief, own = keyed(node("thief", "10.244.7.0/24", address)), ["192.0.2.10", "203.0.113.5"]
    left, problems = peers([thief, NEAR], "me", "10.244.0.0/24", ["192.0.2.10/24"], "auto", own_key, own)
    assert [peer.name for peer in left] == ["near"]
    assert problems == (f"Node thief announces {address}, which is this node's own",)


def test_a_dual_stack_node_is_a_peer_in_each_version() -> None:
    both = node("near", None, "192.0.2.11", "2001:db8::11")
    both["spec"] = {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]}
    assert range_of(both, 4) == "10.244.1.0/24" and range_of(both, 6) == "fd00:1::/64"
    assert range_of(NEAR, 4) == "10.244.1.0/24" and range_of(NEAR, 6) == ""
    (six,), problems = peers([both, FAR], "me", "fd00::/64", ["2001:db8::10/64"])
    assert (six.pod_cidr, six.address, six.overlay, problems) == ("fd00:1::/64", "2001:db8::11", False, ())
    assert six.overlay_address.startswith("fe80::4b:"), "as the kernel makes it of the MAC"
