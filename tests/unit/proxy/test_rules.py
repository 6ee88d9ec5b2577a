"""Golden rules: what kube-proxy would write, chain names included."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import replace

import pytest

from proxy.changes import Endpoint, ServicePort, View
from proxy.config import ProxyConfig
from proxy.iptables import cleanup_script, full_script, parse_save, partial_script
from proxy.rules import build, chain_hash, port_chain

CONFIG = ProxyConfig(cluster_cidr="10.0.0.0/8")
PORT = ServicePort("ns1", "svc1", "p80", "tcp", "172.30.0.41", 80)
ONE = Endpoint("10.180.0.1", 80, local=True)
TWO = Endpoint("10.180.0.2", 80)


def view(port: ServicePort, *endpoints: Endpoint) -> View:
    return View((port,), {port.key: endpoints})


def test_cluster_ip_with_one_endpoint_reads_like_upstreams() -> None:
    nat = build(view(PORT, ONE), CONFIG)["nat"]
    assert nat == {
        "KUBE-SERVICES": (
            '-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 '
            "-j KUBE-SVC-XPGD46QRK7WJZT7O",
            '-m comment --comment "kubernetes service nodeports; '
            'NOTE: this must be the last rule in this chain" '
            "-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8 -j KUBE-NODEPORTS",
        ),
        "KUBE-NODEPORTS": (),
        "KUBE-POSTROUTING": (
            "-m mark ! --mark 0x4000/0x4000 -j RETURN",
            "-j MARK --xor-mark 0x4000",
            '-m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully',
        ),
        "KUBE-MARK-MASQ": ("-j MARK --or-mark 0x4000",),
        "KUBE-PROXY-CANARY": (),
        "KUBE-SVC-XPGD46QRK7WJZT7O": (
            '-m comment --comment "ns1/svc1:p80 cluster IP" -m tcp -p tcp -d 172.30.0.41 --dport 80 '
            "! -s 10.0.0.0/8 -j KUBE-MARK-MASQ",
            '-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" -j KUBE-SEP-SXIVWICOYRO3J4NJ',
        ),
        "KUBE-SEP-SXIVWICOYRO3J4NJ": (
            "-m comment --comment ns1/svc1:p80 -s 10.180.0.1 -j KUBE-MARK-MASQ",
            "-m comment --comment ns1/svc1:p80 -m tcp -p tcp -j DNAT --to-destination 10.180.0.1:80",
        ),
    }


def test_filter_frame_accepts_the_cluster_and_marked_packets() -> None:
    rules = build(View(), CONFIG)["filter"]
    assert rules["KUBE-FORWARD"] == (
        "-m conntrack --ctstate INVALID -j DROP",
        '-m comment --comment "kubernetes forwarding rules" -m mark --mark 0x4000/0x4000 -j ACCEPT',
        '-m comment --comment "kubernetes forwarding conntrack rule" '
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        '-s 10.0.0.0/8 -m comment --comment "kubernetes forwarding pod source rule" -j ACCEPT',
        '-d 10.0.0.0/8 -m comment --comment "kubernetes forwarding pod destination rule" -j ACCEPT',
    )


@pytest.mark.parametrize("count", [2, 3, 7])
def test_every_endpoint_gets_an_equal_share(count: int) -> None:
    endpoints = [Endpoint(f"10.1.0.{n}", 80) for n in range(1, count + 1)]
    rules = build(view(PORT, *endpoints), CONFIG)["nat"]["KUBE-SVC-XPGD46QRK7WJZT7O"][1:]
    rest, shares = 1.0, []
    for rule in rules:
        part = float(rule.split("--probability ")[1].split()[0]) if "--probability" in rule else 1.0
        shares.append(rest * part)
        rest *= 1 - part
    assert len(shares) == count
    assert all(abs(share - 1 / count) < 1e-6 for share in shares)
    assert "--probability" not in rules[-1]


@pytest.mark.parametrize(
    ("changed", "table", "chain", "rule"),
    [
        (
            {},
            "filter",
            "KUBE-SERVICES",
            '-m comment --comment "ns1/svc1:p80 has no endpoints" '
            "-m tcp -p tcp -d 172.30.0.41 --dport 80 -j REJECT",
        ),
        (
            {"node_port": 30080},
            "filter",
            "KUBE-EXTERNAL-SERVICES",
            '-m comment --comment "ns1/svc1:p80 has no endpoints" '
            "-m addrtype --dst-type LOCAL ! -d 127.0.0.0/8 -m tcp -p tcp --dport 30080 -j REJECT",
        ),
    ],
)
def test_without_endpoints_there_is_a_refusal(
    changed: dict[str, int], table: str, chain: str, rule: str
) -> None:
    rules = build(view(replace(PORT, **changed)), CONFIG)  # type: ignore[arg-type]
    assert rule in rules[table][chain]
    assert not any(c.startswith(("KUBE-SVC-", "KUBE-EXT-")) for c in rules["nat"])


def test_node_port_marks_and_then_balances() -> None:
    port = replace(PORT, node_port=30080)
    nat = build(view(port, ONE), CONFIG)["nat"]
    ext = port_chain("KUBE-EXT-", port)
    assert nat["KUBE-NODEPORTS"] == (
        f"-m comment --comment ns1/svc1:p80 -m tcp -p tcp --dport 30080 -j {ext}",
    )
    assert nat[ext] == (
        '-m comment --comment "masquerade traffic for ns1/svc1:p80 external destinations" -j KUBE-MARK-MASQ',
        "-j KUBE-SVC-XPGD46QRK7WJZT7O",
    )


def test_external_policy_local_sends_outsiders_to_this_node_only() -> None:
    port = replace(PORT, node_port=30080, external_local=True)
    nat = build(view(port, ONE, TWO), CONFIG)["nat"]
    svl = port_chain("KUBE-SVL-", port)
    assert nat[port_chain("KUBE-EXT-", port)][-1] == f"-j {svl}"
    assert [r for r in nat[svl] if "10.180.0.2" in r] == []
    assert len(nat["KUBE-SVC-XPGD46QRK7WJZT7O"]) == 3


def test_external_policy_local_without_local_endpoint_drops_outsiders() -> None:
    port = replace(PORT, node_port=30080, external_local=True)
    rules = build(view(port, TWO), CONFIG)
    assert rules["filter"]["KUBE-EXTERNAL-SERVICES"][0].endswith("--dport 30080 -j DROP")
    # Clients in the cluster still reach the endpoints elsewhere.
    ext = rules["nat"][port_chain("KUBE-EXT-", port)]
    assert [rule.rsplit(" ", 1)[1] for rule in ext] == [
        "KUBE-SVC-XPGD46QRK7WJZT7O",
        "KUBE-MARK-MASQ",
        "KUBE-SVC-XPGD46QRK7WJZT7O",
    ]


def test_internal_policy_local_uses_local_endpoints() -> None:
    port = replace(PORT, internal_local=True)
    nat = build(view(port, ONE, TWO), CONFIG)["nat"]
    assert nat["KUBE-SERVICES"][0].endswith(port_chain("-j KUBE-SVL-", port))
    assert "KUBE-SVC-XPGD46QRK7WJZT7O" not in nat
    assert "-j DROP" in build(view(port, TWO), CONFIG)["filter"]["KUBE-SERVICES"][0]


def test_affinity_asks_recent_first_and_remembers_on_the_way() -> None:
    nat = build(view(replace(PORT, affinity_seconds=600), ONE), CONFIG)["nat"]
    assert nat["KUBE-SVC-XPGD46QRK7WJZT7O"][1] == (
        '-m comment --comment "ns1/svc1:p80 -> 10.180.0.1:80" '
        "-m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --rcheck "
        "--seconds 600 --reap -j KUBE-SEP-SXIVWICOYRO3J4NJ"
    )
    assert (
        "-m recent --name KUBE-SEP-SXIVWICOYRO3J4NJ --set -m tcp -p tcp -j DNAT"
        in (nat["KUBE-SEP-SXIVWICOYRO3J4NJ"][1])
    )


def test_terminating_endpoints_serve_only_when_nothing_else_does() -> None:
    leaving = replace(TWO, ready=False, terminating=True)
    gone = replace(TWO, ready=False, serving=False, terminating=True)
    chain = "KUBE-SVC-XPGD46QRK7WJZT7O"
    assert len(build(view(PORT, ONE, leaving), CONFIG)["nat"][chain]) == 2
    assert "10.180.0.2" in build(view(PORT, leaving), CONFIG)["nat"][chain][1]
    assert chain not in build(view(PORT, gone), CONFIG)["nat"]


def test_load_balancer_with_source_ranges_is_guarded() -> None:
    port = replace(PORT, ingress_ips=("203.0.113.7",), source_ranges=("198.51.100.0/24",))
    rules = build(view(port, ONE), CONFIG)
    guard, ext = port_chain("KUBE-FW-", port), port_chain("KUBE-EXT-", port)
    assert rules["nat"][guard] == (
        f'-m comment --comment "ns1/svc1:p80 loadbalancer IP" -s 198.51.100.0/24 -j {ext}',
    )
    assert rules["filter"]["KUBE-PROXY-FIREWALL"][0].endswith("-d 203.0.113.7 --dport 80 -j DROP")


def test_masquerade_all_and_bit_change_the_marks() -> None:
    config = replace(CONFIG, masquerade_all=True, masquerade_bit=15)
    nat = build(view(PORT, ONE), config)["nat"]
    assert nat["KUBE-SVC-XPGD46QRK7WJZT7O"][0].endswith("--dport 80 -j KUBE-MARK-MASQ")
    assert nat["KUBE-MARK-MASQ"] == ("-j MARK --or-mark 0x8000",)


def test_external_ips_need_leave() -> None:
    port = replace(PORT, external_ips=("203.0.113.7",))
    assert "203.0.113.7" not in str(build(view(port, ONE), CONFIG))
    allowed = replace(CONFIG, external_ip_ranges=("203.0.113.0/24",))
    nat = build(view(port, ONE), allowed)["nat"]
    assert nat["KUBE-SERVICES"][1] == (
        '-m comment --comment "ns1/svc1:p80 external IP" -m tcp -p tcp -d 203.0.113.7 --dport 80 '
        f"-j {port_chain('KUBE-EXT-', port)}"
    )


def test_node_ports_answer_on_the_given_addresses_and_never_on_loopback() -> None:
    config = replace(CONFIG, node_port_addresses=("192.0.2.0/24", "127.0.0.0/8", "2001:db8::/64"))
    assert [r for r in build(View(), config)["nat"]["KUBE-SERVICES"] if "NODEPORTS" in r] == [
        '-m comment --comment "kubernetes service nodeports; NOTE: this must be the last rule in this chain" '
        "-d 192.0.2.0/24 -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"
    ]


def test_ipv6_rules_have_ipv6_ranges() -> None:
    config = replace(CONFIG, cluster_cidr="10.0.0.0/8,fd00::/64")
    port = replace(PORT, cluster_ip="fd10::1")
    rules = build(view(port, Endpoint("fd00::5", 80)), config, 6)
    assert "! -d ::1/128" in rules["nat"]["KUBE-SERVICES"][-1]
    assert any("--to-destination [fd00::5]:80" in r for chain in rules["nat"].values() for r in chain)
    assert "10.0.0.0" not in str(rules) and "! -s fd00::/64" in str(rules)


SAVED = """# Generated
*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]
:KUBE-FOREIGN - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A PREROUTING -j KUBE-FOREIGN
-A KUBE-SERVICES -d 10.0.0.1/32 -j KUBE-SVC-AAAAAAAAAAAAAAAA
COMMIT
# Completed
"""


def test_full_script_adds_missing_jumps_once_and_drops_stale_chains_of_ours_only() -> None:
    script = full_script(build(View(), CONFIG), parse_save(SAVED))
    nat = script[script.index("*nat") :]
    assert "-I PREROUTING" not in nat
    assert nat.count("-I OUTPUT") == 1
    assert ":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]" in nat
    assert "-X KUBE-SVC-AAAAAAAAAAAAAAAA" in nat
    assert "FOREIGN" not in script
    assert script.count("COMMIT\n") == 2


def test_partial_script_holds_only_what_changed() -> None:
    before = build(view(PORT, ONE), CONFIG)
    assert partial_script(before, build(view(PORT, ONE), CONFIG)) == ""
    script = partial_script(before, build(view(PORT, TWO), CONFIG))
    assert "*filter" not in script
    assert ":KUBE-SERVICES" not in script
    assert "-X KUBE-SEP-SXIVWICOYRO3J4NJ" in script
    assert script.count("\n:") == 3


def test_cleanup_script_takes_ours_only() -> None:
    script = cleanup_script(parse_save(SAVED))
    assert script.splitlines() == [
        "*nat",
        ":KUBE-SERVICES - [0:0]",
        ":KUBE-SVC-AAAAAAAAAAAAAAAA - [0:0]",
        '-D PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES',
        "-X KUBE-SERVICES",
        "-X KUBE-SVC-AAAAAAAAAAAAAAAA",
        "COMMIT",
    ]
    assert cleanup_script({}) == ""


def test_chain_hash_is_the_librarys_base32_of_sha256() -> None:
    for n in range(300):
        digest = hashlib.sha256(f"default/web-{n}:http".encode()).digest()
        assert chain_hash(f"default/web-{n}:http") == base64.b32encode(digest).decode()[:16]
