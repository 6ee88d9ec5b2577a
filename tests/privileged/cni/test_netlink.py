"""What Netlink promises of a batch, and of the namespace of the thread that asks."""

from __future__ import annotations

import os

import pytest
from network_lab import Namespace

from cni.errors import NetlinkError
from cni.netlink import Netlink
from cni.netns import visited
from cni.rtnetlink import new_address, new_bridge, set_link

pytestmark = pytest.mark.privileged

LO, NOBODY = 1, 9999


def own_namespace() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_batch_tells_of_its_first_failure_and_runs_the_rest(place: int, node: None) -> None:
    good = [set_link(LO, alias="first"), new_address(LO, "10.8.0.1/32")]
    with Netlink() as netlink:
        with pytest.raises(NetlinkError, match=f"Could not configure interface {NOBODY}: ENODEV"):
            netlink.batch([*good[:place], set_link(NOBODY, up=True), *good[place:]])
        link = netlink.link(LO)
        assert link is not None
        assert link.alias == "first"
        assert "10.8.0.1/32" in [a.address for a in netlink.addresses(LO)]


def test_two_failures_of_a_batch_are_not_mixed_up_with_the_next_one(node: None) -> None:
    with Netlink() as netlink:
        with pytest.raises(NetlinkError, match=f"interface {NOBODY}: ENODEV"):
            netlink.batch([set_link(NOBODY), new_address(LO, "10.8.0.1/32"), set_link(NOBODY + 1)])
        netlink.batch([set_link(LO, up=True)])
        with pytest.raises(NetlinkError, match=r"add address 10\.8\.0\.1/32: EEXIST"):
            netlink.batch([new_address(LO, "10.8.0.1/32")])


def test_a_socket_in_another_namespace_leaves_its_maker_where_it_was(node: None) -> None:
    before = own_namespace()
    with Namespace() as pod:
        with Netlink(pod.fd) as inside:
            inside.batch([new_address(LO, "10.8.0.2/32")])
        assert own_namespace() == before
        with pytest.raises(ZeroDivisionError), visited(pod.fd):
            assert own_namespace() == os.fstat(pod.fd).st_ino
            1 / 0  # noqa: B018
    assert own_namespace() == before
    with open(os.devnull) as nothing, pytest.raises(NetlinkError, match=r"enter the network .*: EINVAL"):
        Netlink(nothing.fileno())
    assert own_namespace() == before
    with Netlink() as netlink:
        assert [a.address for a in netlink.addresses(LO) if a.address.startswith("10.8.")] == []


def test_addresses_of_one_link_are_its_own_and_none_where_there_is_no_link(node: None) -> None:
    with Netlink() as netlink:
        netlink.batch([new_bridge("other0"), new_address(LO, "10.8.0.3/32")])
        other = netlink.require("other0").index
        netlink.batch([new_address(other, "10.8.0.4/24")])
        own = [a.address for a in netlink.addresses(other)]
        assert [address for address in own if not address.startswith("fe80:")] == ["10.8.0.4/24"]
        assert {"10.8.0.3/32", "10.8.0.4/24"} <= {a.address for a in netlink.addresses()}
        assert netlink.addresses(NOBODY) == []
        assert "10.8.0.3/32" in [a.address for a in netlink.addresses(LO)]
        assert {"lo", "other0"} <= {link.name for link in netlink.links()}  # other lists are whole again
