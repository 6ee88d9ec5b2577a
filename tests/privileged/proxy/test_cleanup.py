"""Removing what a backend made: at a change of the mode, and for good."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import network_lab
import pytest
from services_lab import VIP, Lab, sync_once

from proxy.config import ProxyConfig
from proxy.iptables import Iptables
from proxy.modes import remove_iptables, remove_nftables, remove_other
from proxy.proxier import bridge_netfilter_problem

pytestmark = pytest.mark.privileged


def test_switching_the_mode_removes_the_other_backends_rules_and_keeps_connections(lab: Lab) -> None:
    lab.serve(2, 8080)
    listener = lab.pods[1].socket()
    listener.bind(("0.0.0.0", 8080))
    listener.listen()
    lab.service(1)
    with listener, lab.pods[0].socket() as client:
        client.connect((VIP, 80))
        server, _ = listener.accept()
        with server:
            lab.mode = "iptables" if lab.mode == "nftables" else "nftables"
            lab.restart()
            lab.service(2)
            remove_other(lab.mode)
            client.send(b"x")
            assert server.recv(1) == b"x"
            assert lab.pods[0].ask(VIP, 80).startswith("pod2 ")
    rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    saved = Iptables().save()
    kube = [c for table in saved.values() for c in table.chains if c.startswith("KUBE-")]
    assert ("table ip kubelet-py-proxy" in rules) == (lab.mode == "nftables") == (not kube)


def test_cleanup_removes_ours_and_only_ours() -> None:
    with network_lab.node():
        for rule in (
            "-t nat -N KUBE-LIKE-BUT-FOREIGN",
            "-t nat -A PREROUTING -p tcp --dport 99 -j KUBE-LIKE-BUT-FOREIGN",
            "-t filter -A FORWARD -s 203.0.113.0/24 -j DROP",
        ):
            subprocess.run(["iptables", *rule.split()], check=True)
        subprocess.run(["nft", "add", "table", "ip", "kubelet-py-proxy-foreign"], check=True)
        before = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        body = {
            "metadata": {"name": "s", "namespace": "d"},
            "spec": {"clusterIP": VIP, "ports": [{"port": 80, "nodePort": 30000}]},
        }
        config = ProxyConfig(cluster_cidr="10.0.0.0/8")
        for mode in ("iptables", "nftables"):
            sync_once(mode, config, body)
        remove_iptables()
        remove_nftables()
        after = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        used = [line for line in after.splitlines() if "KUBE" in line or "kubelet" in line]
        assert [line for line in before.splitlines() if "KUBE" in line or "kubelet" in line] == used
        assert "203.0.113.0/24" in after


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_cleanup_of_a_host_that_had_no_rules_leaves_no_table(mode: str) -> None:
    with network_lab.node():
        sync_once(mode, ProxyConfig())
        assert (remove_iptables(), remove_nftables()) == (mode == "iptables", mode == "nftables")
        listing = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True)
        assert listing.stdout == ""
        assert (remove_iptables(), remove_nftables()) == (False, False)


def test_missing_bridge_netfilter_is_named(tmp_path: Path) -> None:
    assert "modprobe br_netfilter" in (bridge_netfilter_problem(tmp_path) or "")
    assert os.path.exists("/proc/sys/net/bridge") is (bridge_netfilter_problem() is None)
