"""Routes of last resort and the kernel's switches, on a real kernel."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import network_lab
import pytest
from network_lab import Namespace, uplink

from cni.bridge import ensure_bridge
from cni.netlink import Netlink
from cni.rtnetlink import new_veth
from kubelet_py.node import routes

pytestmark = pytest.mark.privileged

ADDRESSES = {"pod_cidr": "10.244.1.0/24", "cluster_cidr": "10.244.0.0/16", "service_cidr": "10.96.0.0/12"}


def put(netlink: Netlink) -> None:
    routes.ensure(netlink, bridge="kpy0", **ADDRESSES)


def connect(address: str) -> int:
    with socket.socket() as sock:
        sock.settimeout(0.2)
        try:
            return sock.connect_ex((address, 80))
        except TimeoutError:
            return errno.ETIMEDOUT


def test_pods_are_unreachable_and_services_end_at_lo_without_a_bridge_and_at_it_with_one() -> None:
    with network_lab.node(), Namespace() as client, Netlink() as netlink:
        uplink(client)
        put(netlink)
        assert connect("10.244.5.5") == errno.EHOSTUNREACH
        # The lookup must succeed for the proxy's DNAT; what no rule matched is discarded on lo.
        assert connect("10.96.0.10") in (errno.EAGAIN, errno.ETIMEDOUT)
        ensure_bridge(netlink, "kpy0", ["10.244.1.1/24"])
        put(netlink)
        assert [r.device for r in netlink.routes() if r.dst == "10.96.0.0/12" and r.device] == [
            netlink.require("kpy0").index
        ]
        # Now it is the ARP among the pods that finds nobody.
        assert connect("10.96.0.10") in (errno.EAGAIN, errno.ETIMEDOUT)
        assert connect("10.244.5.5") == errno.EHOSTUNREACH


def test_ensure_twice_changes_nothing_and_remove_takes_all() -> None:
    with network_lab.node(), Netlink() as netlink:
        netlink.add_route("198.51.100.0/24", kind="unreachable", metric=4096)
        before = netlink.routes(table=None)
        ensure_bridge(netlink, "kpy0", ["10.244.1.1/24"])
        for _ in range(2):
            put(netlink)
            assert sorted((r.dst, r.kind, r.metric) for r in netlink.routes() if r.protocol == 75) == [
                ("10.244.0.0/16", "unreachable", 4096),
                ("10.96.0.0/12", "unicast", 512),
                ("10.96.0.0/12", "unreachable", 4096),
            ]
        assert routes.remove(netlink) == 3
        netlink.delete_link("kpy0")
        assert netlink.routes(table=None) == before


DUAL = {
    "pod_cidr": "10.244.1.0/24,fd00:244:0:1::/64",
    "cluster_cidr": "10.244.0.0/16,fd00:244::/56",
    "service_cidr": "10.96.0.0/12,fd00:96::/112",
}


def ipv6_routes(netlink: Netlink) -> list[tuple[str, str, int]]:
    found = netlink.routes(family=socket.AF_INET6)
    return sorted((r.dst, r.kind, r.metric) for r in found if r.protocol == routes.PROTOCOL)


def test_a_dual_stack_node_has_the_routes_of_both_versions() -> None:
    """IPv6 routes through lo are unreachable ones to the kernel, so without a bridge there is none."""
    with network_lab.node(), Netlink() as netlink:
        routes.ensure(netlink, bridge="kpy0", **DUAL)
        assert ipv6_routes(netlink) == [("fd00:244::/56", "unreachable", 4096)]
        ensure_bridge(netlink, "kpy0", ["10.244.1.1/24", "fd00:244:0:1::1/64"])
        for _ in range(2):
            routes.ensure(netlink, bridge="kpy0", **DUAL)
            assert ipv6_routes(netlink) == [
                ("fd00:244::/56", "unreachable", 4096),
                ("fd00:96::/112", "unicast", 512),
                ("fd00:96::/112", "unreachable", 4096),
            ]
        assert routes.remove(netlink) == 6
        assert ipv6_routes(netlink) == []


def test_who_listens_to_router_advertisements_goes_on_though_it_forwards(tmp_path: Path) -> None:
    """The kernel sets every interface's forwarding with that of all; each gets its own value back."""
    conf = Path("/proc/sys/net/ipv6/conf")

    def values() -> dict[str, str]:
        names = ("all/forwarding", "up0/forwarding", "odd0/forwarding", "up0/accept_ra", "odd0/accept_ra")
        found = {name: (conf / name).read_text().strip() for name in names}
        bridged = Path("/proc/sys/net/bridge/bridge-nf-call-ip6tables")
        return found | ({"bridged": bridged.read_text().strip()} if bridged.exists() else {})

    with network_lab.node(), Netlink() as netlink, Namespace() as other:
        for name in ("up0", "odd0"):
            netlink.batch([new_veth(name, peer=f"{name}p", peer_netns=other.fd)])
        (conf / "all/forwarding").write_text("0")
        (conf / "odd0/forwarding").write_text("1")
        (conf / "odd0/accept_ra").write_text("0")
        before = values()
        assert (before["up0/accept_ra"], before["odd0/forwarding"]) == ("1", "1")
        for _ in range(2):
            assert routes.prepare_kernel(tmp_path / "s.json", six=True) == []
            now = values()
            assert (now["all/forwarding"], now["up0/accept_ra"], now["odd0/accept_ra"]) == ("1", "2", "0")
            assert now.get("bridged", "1") == "1"
        routes.restore_kernel(tmp_path / "s.json")
        assert values() == before


def test_switches_are_turned_and_given_back(tmp_path: Path) -> None:
    names = ["net/ipv4/ip_forward", "net/ipv4/conf/all/send_redirects", "net/ipv4/conf/all/accept_redirects"]

    def values() -> list[str]:
        return [(Path("/proc/sys") / name).read_text().strip() for name in names]

    with network_lab.node():
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        before = values()
        state = tmp_path / "sub/sysctls.json"
        state.parent.mkdir()
        state.write_text("")  # as a power cut may leave it
        assert routes.prepare_kernel(state) == []
        assert routes.prepare_kernel(state) == []
        assert values()[:2] == ["1", "0"]
        routes.restore(state, bridge="kpy0")
        assert values() == before
        assert not state.exists()


def test_a_kernel_without_br_netfilter_is_reported(tmp_path: Path) -> None:
    (tmp_path / "net/ipv4/conf/all").mkdir(parents=True)
    (tmp_path / "net/ipv4/ip_forward").write_text("1\n")
    problems = routes.prepare_kernel(tmp_path / "s.json", proc_sys=tmp_path, load=lambda _module: "not found")
    assert len(problems) == 1 and "modprobe br_netfilter" in problems[0]
