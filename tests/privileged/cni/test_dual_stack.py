"""The bridge plugin in both families on real packets, and what its further options do to them."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from cni_lab import Attach, addresses_of, leases, nat_rules
from network_lab import Namespace, Server, ask, uplink

from cni.errors import CniError, InvalidConfig, PluginFailure, UnsupportedField
from cni.netlink import Netlink
from cni.rtnetlink import new_address, new_bridge

pytestmark = pytest.mark.privileged

FOUR, SIX = [{"subnet": "10.3.0.0/24"}], [{"subnet": "fd03::/64"}]


def bridge(tmp_path: Path, *ranges: Any, **more: Any) -> dict[str, Any]:
    ipam = {"type": "host-local", "ranges": list(ranges or (FOUR, SIX)), "dataDir": str(tmp_path / "leases")}
    body = {"type": "bridge", "bridge": "kpy0", "isDefaultGateway": True, "hairpinMode": True, "ipam": ipam}
    return {**body, **more}


def both(name: str, place: Namespace | None, port: int = 80) -> list[Server]:
    return [Server(name, place, port), Server(name, place, port, address="::")]


def test_pods_node_and_world_in_both_families(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(bridge(tmp_path, ipMasq=True, nonMasqueradeCIDRs=["10.3.0.0/16", "fd03::/48"]))
    with Namespace() as a, Namespace() as b, Namespace() as outside:
        uplink(outside, node_ip6="2001:db8::1", client_ip6="2001:db8::2")
        first, second = invoker.add("a", a.path), invoker.add("b", b.path)
        assert addresses_of(first) == ["10.3.0.2", "fd03::2"]
        assert [ip.gateway for ip in first.ips] == ["10.3.0.1", "fd03::1"]
        servers = [*both("b", b), *both("node", None, 81), *both("out", outside)]
        try:
            for own, other, gateway in zip(
                addresses_of(first), addresses_of(second), ("10.3.0.1", "fd03::1"), strict=True
            ):
                assert a.ask(other, 80) == f"b {own}", "pods see each other's own address"
                assert a.ask(gateway, 81) == f"node {own}"
                assert ask(other, 80) == f"b {gateway}"
            assert a.ask("192.0.2.2", 80) == "out 192.0.2.1"
            assert a.ask("2001:db8::2", 80) == "out 2001:db8::1"
        finally:
            for server in servers:
                server.close()
        invoker.check("a", a.path)
        with a.netlink() as inside:
            words = ["nsenter", f"--net={a.path}", "ip", "-6", "addr", "del", "fd03::2/64", "dev", "eth0"]
            subprocess.run(words, check=True)
            assert inside.require("eth0").up
        with pytest.raises(PluginFailure, match="fd03::2/64"):
            invoker.check("a", a.path)
        for name, pod in (("a", a), ("b", b)):
            invoker.delete(name, pod.path)
        assert leases(tmp_path / "leases/net") == []
    invoker.tear_down()
    assert "CNI-" not in nat_rules() + nat_rules("ip6tables")


def test_a_pod_with_ipv6_alone(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(bridge(tmp_path, SIX))
    with Namespace() as a, Namespace() as b:
        invoker.add("a", a.path)
        assert addresses_of(invoker.add("b", b.path)) == ["fd03::3"]
        server = Server("b", b, 80, address="::")
        try:
            assert a.ask("fd03::3", 80) == "b fd03::2"
        finally:
            server.close()
        invoker.delete("a", a.path)
        invoker.delete("b", b.path)


def test_the_mtu_is_on_bridge_and_both_ends_and_in_the_result(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(bridge(tmp_path, FOUR, mtu=1400))
    with Namespace() as pod, pod.netlink() as inside, Netlink() as host:
        result = invoker.add("a", pod.path)
        assert [i.mtu for i in result.interfaces] == [1400, 1400, 1400]
        assert inside.require("eth0").mtu == 1400
        assert [host.require(i.name).mtu for i in result.interfaces[:2]] == [1400, 1400]
        invoker.delete("a", pod.path)


def test_a_second_gateway_address_needs_force(attach: Attach, tmp_path: Path) -> None:
    with Namespace() as pod, Netlink() as host:
        host.batch([new_bridge("kpy0")])
        host.batch([new_address(host.require("kpy0").index, "10.99.0.1/24")])
        with pytest.raises(InvalidConfig, match=r"it has 10\.99\.0\.1/24"):
            attach(bridge(tmp_path, FOUR)).add("a", pod.path)
        assert leases(tmp_path / "leases/net") == []
        invoker = attach(bridge(tmp_path, FOUR, forceAddress=True))
        invoker.add("a", pod.path)
        present = [a.address for a in host.addresses(host.require("kpy0").index)]
        assert "10.3.0.1/24" in present and "10.99.0.1/24" not in present
        invoker.delete("a", pod.path)


def test_a_link_of_another_kind_is_no_bridge(attach: Attach, tmp_path: Path) -> None:
    with Namespace() as pod, pytest.raises(InvalidConfig, match="Could not use lo as the bridge"):
        attach(bridge(tmp_path, FOUR, bridge="lo")).add("a", pod.path)


def test_isolated_ports_reach_the_node_and_not_each_other(attach: Attach, tmp_path: Path) -> None:
    invoker = attach(bridge(tmp_path, portIsolation=True))
    with Namespace() as a, Namespace() as b:
        invoker.add("a", a.path)
        invoker.add("b", b.path)
        servers = [*both("b", b), *both("node", None, 81)]
        try:
            assert a.ask("10.3.0.1", 81) == "node 10.3.0.2"
            for address in ("10.3.0.3", "fd03::3"):
                with pytest.raises(OSError):
                    a.ask(address, 80)
        finally:
            for server in servers:
                server.close()
        invoker.check("a", a.path)
        invoker.delete("a", a.path)
        invoker.delete("b", b.path)


def test_promiscuous_bridge_and_an_interface_left_down(attach: Attach, tmp_path: Path) -> None:
    flat = {"type": "bridge", "bridge": "kpy0", "promiscMode": True, "disableContainerInterface": True}
    invoker = attach(flat)
    with Namespace() as pod, pod.netlink() as inside, Netlink() as host:
        result = invoker.add("a", pod.path)
        assert host.require("kpy0").promisc
        assert not inside.require("eth0").up
        assert (result.ips, len(result.interfaces)) == ((), 3)
        invoker.check("a", pod.path)
        invoker.delete("a", pod.path)


def test_requested_addresses_and_mac_are_given(attach: Attach, tmp_path: Path) -> None:
    section = bridge(tmp_path, capabilities={"ips": True, "mac": True})
    invoker = attach(section)
    wanted = {"ips": ["10.3.0.77/24", "fd03::77"], "mac": "02:00:00:00:00:77"}
    with Namespace() as pod, Namespace() as other, pod.netlink() as inside:
        result = invoker.add("a", pod.path, capabilities=wanted)
        assert addresses_of(result) == ["10.3.0.77", "fd03::77"]
        assert inside.require("eth0").mac == "02:00:00:00:00:77" == result.interfaces[2].mac
        with pytest.raises(PluginFailure, match=r"10\.3\.0\.77: EEXIST"):
            invoker.add("b", other.path, capabilities=wanted)
        with pytest.raises(InvalidConfig, match="MAC address"):
            invoker.add("c", other.path, capabilities={"mac": "no"})
        assert leases(tmp_path / "leases/net") == ["10.3.0.77", "fd03::77"]
        # CNI_ARGS are the older way.
        by_args = {"IP": "10.3.0.80", "MAC": "02:00:00:00:00:80"}
        assert addresses_of(invoker.add("d", other.path, args=by_args))[0] == "10.3.0.80"
        invoker.delete("a", pod.path)
        invoker.delete("d", other.path)


def test_routes_with_metrics_and_the_networks_dns_arrive(attach: Attach, tmp_path: Path) -> None:
    section = bridge(tmp_path, FOUR, dns={"nameservers": ["10.96.0.10"], "search": ["svc"]})
    section["ipam"]["routes"] = [
        {"dst": "198.51.100.0/24", "mtu": 1300, "advmss": 1200, "priority": 7},
        {"dst": "203.0.113.0/24", "gw": "10.3.0.9", "table": 77},
    ]
    invoker = attach(section)
    with Namespace() as pod:
        result = invoker.add("a", pod.path)
        assert result.dns.nameservers == ("10.96.0.10",)
        shown = subprocess.run(
            ["nsenter", f"--net={pod.path}", "ip", "route", "show", "table", "all"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "198.51.100.0/24 via 10.3.0.1 dev eth0 proto static metric 7 mtu 1300 advmss 1200" in shown
        assert "203.0.113.0/24 via 10.3.0.9 dev eth0 table 77" in shown
        invoker.check("a", pod.path)
        invoker.delete("a", pod.path)


def test_options_that_are_not_there_are_refused_with_code_2(attach: Attach, tmp_path: Path) -> None:
    with Namespace() as pod, pytest.raises(UnsupportedField, match="enabledad") as caught:
        attach(bridge(tmp_path, enabledad=True)).add("a", pod.path)
    assert caught.value.code == 2


def test_ranges_of_a_set_are_used_one_after_the_other(attach: Attach, tmp_path: Path) -> None:
    """host-local's order: the first range to its end, then the next, and round again past freed ones."""
    spans = [
        {"subnet": "10.3.0.0/24", "rangeStart": "10.3.0.10", "rangeEnd": "10.3.0.11"},
        {"subnet": "10.3.1.0/24", "rangeStart": "10.3.1.20", "rangeEnd": "10.3.1.20"},
    ]
    invoker = attach({"type": "ptp", "ipam": {**bridge(tmp_path, spans)["ipam"]}})
    given: list[str] = []
    for name in "abcd":
        with Namespace() as pod:
            given += addresses_of(invoker.add(name, pod.path))
            invoker.delete(name, pod.path)
    assert given == ["10.3.0.10", "10.3.0.11", "10.3.1.20", "10.3.0.10"]
    pods = [Namespace() for _ in range(4)]
    for number, pod in enumerate(pods[:3]):
        invoker.add(f"full{number}", pod.path)
    with pytest.raises(CniError, match=r"10\.3\.0\.10-10\.3\.0\.11, 10\.3\.1\.20-") as caught:
        invoker.add("late", pods[3].path)
    assert caught.value.code == 101
    for number, pod in enumerate(pods):
        invoker.delete(f"full{number}", pod.path)
        pod.close()
