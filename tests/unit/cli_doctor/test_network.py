"""Netfilter and network: what is found → what doctor says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from kubelet_py.cli.doctor import netfilter, network
from kubelet_py.cli.doctor.finding import Finding
from kubelet_py.cli.doctor.netfilter import NetfilterFacts
from kubelet_py.cli.doctor.network import STUB_SOURCE, NetworkFacts, takes_veths

Worst = Callable[[Sequence[Finding]], Finding]

NFT, LEGACY = "iptables v1.8.9 (nf_tables)", "iptables v1.8.9 (legacy)"
RULES = NetfilterFacts(
    root=True,
    version=NFT,
    problem="",
    hidden=(),
    hidden_tables=(),
    nftables="",
    forward_policy="",
    conntrack_tool="/usr/sbin/conntrack",
    conntrack_kernel=True,
    bridge_call="1",
    firewalls=(),
    mode="iptables",
    ports=10,
    comfortable=2000,
)
NET = NetworkFacts(
    forward="1",
    sysctls_writable=True,
    rp_filter={"all": "0", "default": "1", "eth0": "0", "lo": "1"},
    address="192.0.2.5 (eth0)",
    reason="the default route leads through eth0",
    refusal="",
    others=0,
    known=True,
    resolv_conf="/etc/resolv.conf",
    servers=("192.0.2.1",),
    stub_source=False,
    networkd={},
)


@pytest.mark.parametrize(
    ("change", "name", "state", "found"),
    [
        ({}, "", "ok", NFT),
        ({"version": ""}, "iptables", "missing", "not on PATH"),
        ({"problem": "mixed variants"}, "iptables", "missing", "mixed variants"),
        ({"root": False}, "legacy rules", "degraded", "not readable"),
        ({"hidden_tables": ("nat",)}, "", "ok", NFT),
        ({"hidden_tables": ("nat",), "hidden": ("nat/OUTPUT",)}, "legacy rules", "degraded", "in nat/OUTPUT"),
        ({"hidden_tables": ("nat",), "hidden": None}, "legacy rules", "degraded", "legacy tables: nat"),
        (
            {"hidden": ("nat/OUTPUT",), "version": LEGACY},
            "legacy rules",
            "degraded",
            "of nft's in nat/OUTPUT",
        ),
        ({"version": LEGACY}, "", "ok", LEGACY),
        ({"nftables": "EPERM"}, "nftables", "degraded", "EPERM"),
        ({"nftables": "EPERM", "mode": "nftables"}, "nftables", "missing", "EPERM"),
        ({"ports": 2000}, "", "ok", NFT),
        ({"ports": 2001}, "services", "degraded", "2001 ports by iptables, and the nft variant of iptables"),
        ({"ports": 9000, "mode": "nftables"}, "", "ok", NFT),
        ({"ports": 9000, "version": LEGACY}, "", "ok", LEGACY),
        ({"ports": None}, "", "ok", NFT),
        ({"forward_policy": "DROP"}, "", "ok", NFT),
        ({"forward_policy": "DROP", "mode": "nftables"}, "FORWARD policy", "degraded", "cannot overrule"),
        ({"conntrack_tool": ""}, "conntrack", "degraded", "not on PATH"),
        ({"conntrack_kernel": False}, "conntrack", "missing", "not in the kernel"),
        ({"bridge_call": "module"}, "", "ok", NFT),
        ({"bridge_call": "0"}, "", "ok", NFT),
        ({"bridge_call": ""}, "br_netfilter", "degraded", "not loaded"),
        ({"firewalls": ("firewalld", "ufw")}, "firewalls", "degraded", "firewalld, ufw active"),
    ],
)
def test_rules_and_those_who_write_them(
    worst: Worst, change: dict[str, Any], name: str, state: str, found: str
) -> None:
    said = worst(netfilter.judge(replace(RULES, **change)))
    assert said.state == state and found in said.found
    assert not name or said.name == name


GREEDY = "[Match]\nType=ether\n\n[Network]\nDHCP=yes\nName=elsewhere\n"


@pytest.mark.parametrize(
    ("change", "name", "state", "found"),
    [
        ({}, "", "ok", "192.0.2.5 (eth0): the default route"),
        ({"refusal": "10.0.2.15 is shared"}, "address", "missing", "10.0.2.15 is shared"),
        ({"refusal": "10.0.2.15 is shared", "known": False}, "address", "degraded", "10.0.2.15"),
        ({"forward": "0"}, "", "ok", "192.0.2.5"),
        ({"forward": "0", "sysctls_writable": False}, "forwarding", "missing", "ip_forward=0, and /proc/sys"),
        ({"rp_filter": {"all": "1", "eth0": "0"}}, "", "ok", "192.0.2.5"),
        ({"rp_filter": {"all": "1", "eth0": "0"}, "others": 1}, "rp_filter", "degraded", "strict on eth0"),
        ({"rp_filter": {"all": "0", "eth1": "1"}, "others": 1}, "rp_filter", "degraded", "strict on eth1"),
        ({"rp_filter": {"all": "2", "eth0": "1"}, "others": 1}, "", "ok", "192.0.2.5"),
        ({"servers": ()}, "DNS", "degraded", "no nameserver in /etc/resolv.conf"),
        ({"servers": ("127.0.0.53",)}, "DNS", "degraded", "127.0.0.53 in /etc/resolv.conf: a loop"),
        ({"servers": ("::1",)}, "DNS", "degraded", "a loop"),
        ({"servers": ("127.0.0.1", "192.0.2.1")}, "", "ok", "192.0.2.5"),
        ({"servers": ("fe80::1%eth0",)}, "", "ok", "192.0.2.5"),
        ({"networkd": {"/etc/a.network": GREEDY}}, "networkd", "degraded", "/etc/a.network fits every veth"),
        ({"networkd": {"/etc/a.network": "[Match]\nName=en*\n"}}, "", "ok", "192.0.2.5"),
    ],
)
def test_addresses_names_and_interfaces(
    worst: Worst, change: dict[str, Any], name: str, state: str, found: str
) -> None:
    said = worst(network.judge(replace(NET, **change)))
    assert said.state == state and found in said.found
    assert not name or said.name == name


def test_a_loop_is_mended_by_the_file_that_resolved_keeps() -> None:
    loop = replace(NET, servers=("127.0.0.53",), stub_source=True)
    assert f"resolvConf: {STUB_SOURCE}" in network.names(loop).mend
    assert STUB_SOURCE not in network.names(replace(loop, stub_source=False)).mend


@pytest.mark.parametrize(
    ("text", "takes"),
    [
        (GREEDY, True),
        ("[Match]\nType = ether\nVirtualization=yes\n", True),
        ("[Match]\nType=wlan ether\n", True),
        ("[Match]\nName=*\n", True),
        ("[Match]\nName=*\nType=ether\n", True),
        ("[Match]\nType=ether\nKind=!veth\n", False),
        ("[Match]\nType=ether\nName=en*\n", False),
        ("[Match]\nType=ether\nMACAddress=02:00:00:00:00:01\n", False),
        ("[Match]\nType=wlan\n", False),
        ("[Match]\n#Type=ether\nName=eth0\n", False),
        ("[Network]\nType=ether\n", False),
        ("", False),
    ],
)
def test_which_rules_of_networkd_fit_a_veth(text: str, takes: bool) -> None:
    assert takes_veths(text) is takes
