"""`python -m proxy` as the supervisor starts it, against a small API server that can be away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
from proxy_lab import Api, endpoints, node, service, start, write_kubeconfig

pytestmark = pytest.mark.privileged


def nat_holds(*texts: str, within: float = 60.0) -> float:
    """Seconds until the nat table shows all texts."""
    began = time.monotonic()
    while time.monotonic() - began < within:
        rules = subprocess.run(["iptables-save", "-t", "nat"], capture_output=True, text=True).stdout
        if all(text in rules for text in texts):
            return time.monotonic() - began
        time.sleep(0.005)
    raise AssertionError(f"not in the kernel after {within} s: {texts}\n{rules}")


def healthy_within(seconds: float) -> bool:
    # The rules are in the kernel a moment before the proxy says so.
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen("http://127.0.0.1:10256/healthz", timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            time.sleep(0.02)
    return False


@pytest.fixture
def api() -> Iterator[Api]:
    with network_lab.node():
        made = Api()
        yield made
        made.close()


def test_follows_the_api_survives_sigkill_and_leaves_its_rules_on_sigterm(api: Api, tmp_path: Path) -> None:
    api.lists["services"] = [service()]
    process = start(api, tmp_path)
    try:
        time.sleep(0.3)
        assert process.poll() is None, "it must wait for its kubeconfig"
        write_kubeconfig(api, tmp_path)
        nat_holds("KUBE-SERVICES")
        assert healthy_within(60)
        for n in range(2, 7):
            api.send(
                "endpointslices",
                "ADDED" if n == 2 else "MODIFIED",
                endpoints(f"10.244.0.{n}", version=str(n)),
            )
            nat_holds(f"--to-destination 10.244.0.{n}:8080")
        process.kill()
        process.communicate()
        nat_holds("--to-destination 10.244.0.6:8080")
        api.close()
        api.__init__()  # type: ignore[misc]
        api.lists["services"] = [service()]
        api.lists["endpointslices"] = [endpoints("10.244.0.77", version="9")]
        write_kubeconfig(api, tmp_path)
        process = start(api, tmp_path)
        nat_holds("--to-destination 10.244.0.77:8080")
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        nat_holds("--to-destination 10.244.0.77:8080")
        assert "Traceback" not in log
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_cleanup_command_leaves_no_rule(api: Api, tmp_path: Path) -> None:
    write_kubeconfig(api, tmp_path)
    process = start(api, tmp_path)
    try:
        nat_holds("KUBE-SERVICES")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    done = subprocess.run(
        [sys.executable, "-m", "proxy", "--cleanup"],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout == ""


def test_without_iptables_there_is_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    # A mount namespace with nothing where iptables is.
    command = 'mount -t tmpfs none /usr/sbin && exec "$0" -m proxy --cleanup'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command, sys.executable],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/usr/bin:/bin"},
    )
    assert done.returncode == 1
    assert done.stderr == (
        "kube-proxy: Could not find iptables on PATH (install it: apt-get install iptables)\n"
    )


def test_nftables_process_repairs_a_flush_and_counts_it(api: Api, tmp_path: Path) -> None:
    api.lists["services"] = [service()]
    api.lists["endpointslices"] = [endpoints("10.244.0.2", version="2")]
    api.lists["nodes"] = [node("192.0.2.1", version="3")]
    write_kubeconfig(api, tmp_path)
    process = start(api, tmp_path, "--proxy-mode", "auto", "--metrics-bind-address", "127.0.0.1:10256")
    try:
        nft_holds("10.96.0.9 . tcp . 80 : goto cluster-1", "10.244.0.2 . 8080")
        subprocess.run(["nft", "flush", "ruleset"], check=True)
        nft_holds("10.96.0.9 . tcp . 80 : goto cluster-1", "10.244.0.2 . 8080")
        element = "{ 10.96.0.9 . tcp . 80 }"
        subprocess.run(
            ["nft", "delete", "element", "ip", "kubelet-py-proxy", "service-ips", element], check=True
        )
        nft_holds("10.96.0.9 . tcp . 80 : goto cluster-1")
        subprocess.run(["nft", "flush", "chain", "ip", "kubelet-py-proxy", "services"], check=True)
        nft_holds("vmap @service-ips")
        with urllib.request.urlopen("http://127.0.0.1:10256/metrics", timeout=5) as answer:
            page = answer.read().decode().splitlines()
        with urllib.request.urlopen("http://127.0.0.1:10256/proxyMode", timeout=5) as answer:
            assert answer.read() == b"nftables"
        assert "kubeproxy_sync_proxy_rules_repairs_total 3" in page
        assert 'kubeproxy_sync_proxy_rules_nftables_elements{ip_family="IPv4",map="service-ips"} 1' in page
        assert healthy_within(60)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 0, log
        assert "mode=nftables backends=nftables/ipv4 reason=the kernel takes nftables rules" in log
        assert "Traceback" not in log
        nft_holds("10.244.0.2 . 8080")
        done = subprocess.run([sys.executable, "-m", "proxy", "--cleanup"], cwd=Path(__file__).parents[3])
        assert done.returncode == 0
        assert subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout == ""
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("mode", "flags"), [("iptables", ("--nodeport-addresses", "primary")), ("nftables", ())]
)
def test_primary_waits_for_the_nodes_address_and_ends_when_it_changes(
    api: Api, tmp_path: Path, mode: str, flags: tuple[str, ...]
) -> None:
    """The nftables mode does so by default, as upstream's."""
    body = service()
    body["spec"] |= {"type": "NodePort", "ports": [{"name": "", "port": 80, "nodePort": 30080}]}
    api.lists["services"] = [body]
    api.lists["endpointslices"] = [endpoints("10.244.0.2", version="2")]
    write_kubeconfig(api, tmp_path)
    process = start(api, tmp_path, "--proxy-mode", mode, *flags)
    try:
        assert process.stderr is not None
        assert any("Waiting for the addresses of this node" in line for line in process.stderr)
        api.lists["nodes"] = [node("192.0.2.1", "192.0.2.2", version="3")]
        rules = ["nft", "list", "table", "ip", "kubelet-py-proxy"]
        if mode == "iptables":
            rules = ["iptables", "-t", "nat", "-S", "KUBE-SERVICES"]
        found = ""
        deadline = time.monotonic() + 60
        while "192.0.2.1" not in found:
            assert time.monotonic() < deadline, found
            found = subprocess.run(rules, capture_output=True, text=True).stdout
            time.sleep(0.05)
        assert "192.0.2.2" not in found
        api.send("nodes", "MODIFIED", node("192.0.2.2", version="4"))
        _, log = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "Stopped for new addresses of this node old=192.0.2.1/32 new=192.0.2.2/32" in log
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
        subprocess.run(
            [sys.executable, "-m", "proxy", "--cleanup"], cwd=Path(__file__).parents[3], check=True
        )


def nft_holds(*texts: str, within: float = 30.0) -> None:
    deadline = time.monotonic() + within
    while True:
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True).stdout
        if all(text in rules for text in texts):
            return
        assert time.monotonic() < deadline, f"not in the kernel after {within} s: {texts}\n{rules}"
        time.sleep(0.02)
