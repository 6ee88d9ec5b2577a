"""Services on real packets: pods, a node and a client in namespaces, rules by the real iptables."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
from network_lab import Namespace, Server, ask, uplink

from cni import conflist, skeleton
from cni.invoke import Invoker
from cni.netlink import Netlink
from cni.netns import in_namespace
from kubelet_py.node import routes
from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack
from proxy.healthcheck import Health
from proxy.iptables import Iptables
from proxy.proxier import Proxier, bridge_netfilter_problem, clean_up

pytestmark = pytest.mark.privileged

VIP = "10.96.0.50"


class Lab:
    """A node with three pods, a client on its uplink, and a proxier that is synced by hand."""

    def __init__(self, folder: Path) -> None:
        skeleton.write_executables(folder / "bin", sys.executable)
        body = conflist.bridge_network(
            name="lab",
            bridge="kpy0",
            subnet="10.244.1.0/24",
            cluster_cidr="10.244.0.0/16",
            data_dir=folder / "d",
        )
        conflist.write(folder / "net.d/10.conflist", body)
        self.invoker = Invoker(
            config_dir=folder / "net.d",
            bin_dirs=[folder / "bin"],
            cache_dir=folder / "cache",
            own_bin_dir=folder / "bin",
        )
        self.client = Namespace()
        uplink(self.client)
        self.problems = routes.prepare_kernel(folder / "sysctls.json")
        self.invoker.prepare()
        with Netlink() as netlink:
            routes.ensure(
                netlink,
                bridge="kpy0",
                pod_cidr="10.244.1.0/24",
                cluster_cidr="10.244.0.0/16",
                service_cidr="10.96.0.0/12",
            )
        self.pods = [Namespace() for _ in range(3)]
        self.ips = [
            self.invoker.add(f"pod{n}", p.path).ips[0].address.split("/")[0] for n, p in enumerate(self.pods)
        ]
        self.servers: list[Server] = []
        self.backend = Iptables()
        self.restart()

    def restart(self) -> None:
        """A proxier that knows nothing of the one before."""
        config = ProxyConfig(hostname="node-a", cluster_cidr="10.244.0.0/16")
        self.changes = Changes("node-a")
        self.proxier = Proxier(config, self.changes, self.backend, Conntrack(), Health(60))

    def serve(self, pod: int, port: int, *, udp: bool = False) -> None:
        self.servers.append(Server(f"pod{pod}", self.pods[pod], port, udp=udp))

    def service(self, *endpoints: int | str, udp: bool = False, **spec: object) -> str:
        protocol = "UDP" if udp else "TCP"
        port = {"name": "web", "port": 80, "protocol": protocol, "targetPort": "http", "nodePort": 30080}
        meta = {"name": "web", "namespace": "default"}
        body = {"metadata": meta, "spec": {"clusterIP": VIP, "ports": [port], "type": "NodePort", **spec}}
        self.changes.service_event("ADDED", body)
        self.changes.slice_event(
            "ADDED",
            {
                "metadata": {**meta, "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080, "protocol": protocol}],
                "endpoints": [
                    {"addresses": [e if isinstance(e, str) else self.ips[e]], "nodeName": "node-a"}
                    for e in endpoints
                ],
            },
        )
        return self.proxier.sync()

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for pod in (*self.pods, self.client):
            pod.close()


@pytest.fixture(params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """On each variant of iptables that the machine has; all tools of one test are of the same."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for suffix in ("", "-save", "-restore"):
        program = shutil.which(f"iptables-{request.param}{suffix}")
        if program is None:
            pytest.skip(f"iptables-{request.param}{suffix} is not installed")
        (folder / f"iptables{suffix}").symlink_to(program)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with network_lab.node():
        lab = Lab(tmp_path)
        assert lab.backend.variant == request.param
        yield lab
        lab.close()


def counted(chain_start: str) -> dict[str, int]:
    """Packets per rule of the nat chains that start so."""
    text = subprocess.run(
        ["iptables-save", "-c", "-t", "nat"], capture_output=True, text=True, check=True
    ).stdout
    found: dict[str, int] = {}
    for line in text.splitlines():
        if line.startswith("[") and f"-A {chain_start}" in line:
            count, _, rule = line.partition("] ")
            found[rule] = int(count[1:].partition(":")[0])
    return found


def test_pod_reaches_other_pods_by_cluster_ip_with_its_own_address(lab: Lab) -> None:
    assert lab.problems == []
    lab.serve(1, 8080)
    lab.serve(2, 8080)
    lab.service(1, 2)
    seen = lab.pods[0].tally(VIP, 80, 40)
    assert set(seen) == {"pod1", "pod2"} and sum(seen.values()) == 40
    assert lab.pods[0].ask(VIP, 80).split()[1] == lab.ips[0]
    dnat = {rule: n for rule, n in counted("KUBE-SEP-").items() if "DNAT" in rule}
    assert len(dnat) == 2 and sum(dnat.values()) == 41


def test_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    lab.serve(0, 8080)
    lab.service(0)
    assert lab.pods[0].ask(VIP, 80) == "pod0 10.244.1.1"
    marked = {rule: n for rule, n in counted("KUBE-SEP-").items() if "KUBE-MARK-MASQ" in rule}
    assert list(marked.values()) == [1]


def test_node_reaches_cluster_ip_and_its_own_node_port(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    assert ask(VIP, 80).startswith("pod1 ")
    assert ask("192.0.2.1", 30080).startswith("pod1 ")


def test_service_of_the_node_itself_is_reached_by_pods_and_by_the_node(lab: Lab) -> None:
    lab.servers.append(Server("apiserver", None, 8080))
    lab.service("192.0.2.1")
    assert lab.pods[0].ask(VIP, 80) == f"apiserver {lab.ips[0]}"
    assert ask(VIP, 80).startswith("apiserver ")


def test_client_outside_reaches_the_node_port_and_the_pod_sees_the_node(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    assert lab.client.ask("192.0.2.1", 30080) == "pod1 10.244.1.1"


def test_pod_reaches_the_node_port_by_the_nodes_address(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    assert lab.pods[0].ask("192.0.2.1", 30080).startswith("pod1 ")


def test_external_policy_local_keeps_the_clients_address(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1, externalTrafficPolicy="Local")
    assert lab.client.ask("192.0.2.1", 30080) == "pod1 192.0.2.2"


@pytest.mark.parametrize("place", ["pod", "node", "client"])
def test_service_without_endpoints_refuses_at_once(lab: Lab, place: str) -> None:
    lab.service()
    with pytest.raises(ConnectionRefusedError):
        if place == "pod":
            lab.pods[0].ask(VIP, 80)
        elif place == "node":
            ask(VIP, 80)
        else:
            lab.client.ask("192.0.2.1", 30080)


def test_udp_follows_when_the_endpoint_moves(lab: Lab) -> None:
    lab.serve(1, 8080, udp=True)
    lab.serve(2, 8080, udp=True)
    lab.service(1, udp=True)
    with lab.pods[0].socket(socket.SOCK_DGRAM) as sock:
        sock.connect((VIP, 80))
        sock.send(b"?")
        assert sock.recv(100).decode() == f"pod1 {lab.ips[0]}"
        lab.service(2, udp=True)
        sock.send(b"?")
        assert sock.recv(100).decode() == f"pod2 {lab.ips[0]}"


def test_udp_flow_that_moved_while_no_proxy_ran_is_mended_at_the_start(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080, udp=True)
    lab.service(1, udp=True)
    with lab.pods[0].socket(socket.SOCK_DGRAM) as sock:
        sock.connect((VIP, 80))
        sock.send(b"?")
        assert sock.recv(100).startswith(b"pod1 ")
        lab.restart()
        lab.service(2, udp=True)
        sock.send(b"?")
        assert sock.recv(100).startswith(b"pod2 ")


def test_affinity_keeps_a_client_on_one_endpoint(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    lab.service(1, 2, sessionAffinity="ClientIP")
    assert len(lab.pods[0].tally(VIP, 80, 20)) == 1


def test_unknown_service_address_never_leaves_by_the_uplink(lab: Lab) -> None:
    watch = in_namespace(
        lab.client.fd, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.ntohs(0x0800))
    )
    with watch:
        for place in (None, lab.pods[0]):
            for address in ("10.96.9.9", "10.244.7.7"):
                with place.socket() if place else socket.socket() as sock, pytest.raises(OSError):
                    sock.settimeout(0.3)
                    sock.connect((address, 80))
        watch.settimeout(0.1)
        with pytest.raises(TimeoutError):
            watch.recv(100)
        # The watch sees what does leave.
        with pytest.raises(ConnectionRefusedError):
            ask("192.0.2.2", 80)
        assert watch.recv(100)


def test_established_connection_survives_syncs(lab: Lab) -> None:
    listener = lab.pods[1].socket()
    listener.bind(("0.0.0.0", 8080))
    listener.listen()
    lab.service(1)
    with lab.pods[0].socket() as client:
        client.connect((VIP, 80))
        server, _ = listener.accept()
        for endpoints in ((1, 2), (2,), (1, 2)):
            lab.service(*endpoints)
            client.send(b"x")
            assert server.recv(1) == b"x"
        server.close()
    listener.close()


def test_flush_by_somebody_else_is_repaired_by_a_full_sync(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    subprocess.run(["iptables", "-t", "nat", "-F"], check=True)
    subprocess.run(["iptables", "-t", "nat", "-X"], check=True)
    assert not lab.backend.has_chains("KUBE-PROXY-CANARY")
    lab.proxier._look_at_canary()
    assert lab.proxier.sync() == "Synced full"
    assert lab.pods[0].ask(VIP, 80).startswith("pod1 ")


def test_a_new_proxier_takes_over_and_removes_what_is_stale(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1, 2)
    changes = Changes("node-a")
    changes._services, changes._slices = lab.changes._services, {}
    config = ProxyConfig(hostname="node-a", cluster_cidr="10.244.0.0/16")
    Proxier(config, changes, lab.backend, Conntrack(), Health(60)).sync()
    saved = lab.backend.save()
    assert not [c for c in saved["nat"].chains if c.startswith("KUBE-SEP-")]
    assert len([r for r in saved["nat"].rules if r.startswith("-A PREROUTING")]) == 1
    assert len([r for r in saved["filter"].rules if r.startswith("-A FORWARD")]) == 4


def test_cleanup_removes_ours_and_only_ours() -> None:
    with network_lab.node():
        for rule in (
            "-t nat -N KUBE-LIKE-BUT-FOREIGN",
            "-t nat -A PREROUTING -p tcp --dport 99 -j KUBE-LIKE-BUT-FOREIGN",
            "-t filter -A FORWARD -s 203.0.113.0/24 -j DROP",
        ):
            subprocess.run(["iptables", *rule.split()], check=True)
        before = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        changes = Changes("n")
        changes.service_event(
            "ADDED",
            {
                "metadata": {"name": "s", "namespace": "d"},
                "spec": {"clusterIP": VIP, "ports": [{"port": 80, "nodePort": 30000}]},
            },
        )
        backend = Iptables()
        Proxier(ProxyConfig(cluster_cidr="10.0.0.0/8"), changes, backend, Conntrack(), Health(60)).sync()
        clean_up(backend)
        after = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        used = [line for line in after.splitlines() if "KUBE" in line]
        assert [line for line in before.splitlines() if "KUBE" in line] == used
        assert "203.0.113.0/24" in after


def test_cleanup_of_a_host_that_had_no_rules_leaves_no_table() -> None:
    with network_lab.node():
        backend = Iptables()
        Proxier(ProxyConfig(), Changes("n"), backend, Conntrack(), Health(60)).sync()
        clean_up(backend)
        assert (
            subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
            == ""
        )
        clean_up(backend)


def test_missing_bridge_netfilter_is_named(tmp_path: Path) -> None:
    assert "modprobe br_netfilter" in (bridge_netfilter_problem(tmp_path) or "")
    assert os.path.exists("/proc/sys/net/bridge") is (bridge_netfilter_problem() is None)
