"""Services on real packets: pods, a node and a client in namespaces, and each backend by turns."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import network_lab
import pytest
from network_lab import Namespace, Server, ask, pod_network, uplink

from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import new_address
from kubelet_py.cli.inspect_nft import service_elements
from kubelet_py.node import routes
from proxy.backend import Backend
from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack
from proxy.healthcheck import Health
from proxy.iptables import Iptables
from proxy.modes import backends, remove_iptables, remove_nftables, remove_other
from proxy.proxier import AddressFamily, Proxier, bridge_netfilter_problem

pytestmark = pytest.mark.privileged

VIP = "10.96.0.50"


class Lab:
    """A node with three pods, a client on its uplink, and a proxier that is synced by hand."""

    def __init__(self, folder: Path, mode: str) -> None:
        self.invoker = pod_network(folder)
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
        self.mode = mode
        self.backend: Backend | None = None
        self.restart()

    def restart(self, **config: Any) -> None:
        """A proxier that knows nothing of the one before."""
        settings = ProxyConfig(hostname="node-a", cluster_cidr="10.244.0.0/16", **config)
        self.changes = Changes("node-a")
        if self.backend is not None:
            self.backend.close()
        (self.backend,) = backends(self.mode, settings, [4])
        families = [AddressFamily(self.changes, self.backend, Conntrack())]
        self.proxier = Proxier(settings, families, self.changes.changed, Health(60))

    def serve(self, pod: int, port: int, *, udp: bool = False) -> None:
        self.servers.append(Server(f"pod{pod}", self.pods[pod], port, udp=udp))

    def service(
        self, *endpoints: int | str | dict[str, Any], udp: bool = False, ingress: str = "", **spec: object
    ) -> str:
        """Define Service default/web: a pod's number, an address, or a whole entry for each endpoint."""
        protocol = "UDP" if udp else "TCP"
        port = {"name": "web", "port": 80, "protocol": protocol, "targetPort": "http", "nodePort": 30080}
        meta = {"name": "web", "namespace": "default"}
        body = {"metadata": meta, "spec": {"clusterIP": VIP, "ports": [port], "type": "NodePort", **spec}}
        if ingress:
            body["status"] = {"loadBalancer": {"ingress": [{"ip": ingress}]}}
        self.changes.service_event("ADDED", body)
        self.changes.slice_event(
            "ADDED",
            {
                "metadata": {**meta, "name": "web-x", "labels": {"kubernetes.io/service-name": "web"}},
                "addressType": "IPv4",
                "ports": [{"name": "web", "port": 8080, "protocol": protocol}],
                "endpoints": [e if isinstance(e, dict) else self.entry(e) for e in endpoints],
            },
        )
        return self.proxier.sync()

    def entry(self, which: int | str, node: str = "node-a", **more: Any) -> dict[str, Any]:
        return {"addresses": [which if isinstance(which, str) else self.ips[which]], "nodeName": node, **more}

    def close(self) -> None:
        if self.backend is not None:
            self.backend.close()
        for server in self.servers:
            server.close()
        for pod in (*self.pods, self.client):
            pod.close()


@pytest.fixture(params=["iptables-nft", "iptables-legacy", "nftables"])
def lab(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """Each backend, iptables in each variant the machine has; all tools of one test are of the same."""
    mode, _, variant = request.param.partition("-")
    if variant:
        folder = tmp_path / "tools"
        folder.mkdir()
        for suffix in ("", "-save", "-restore"):
            program = shutil.which(f"iptables-{variant}{suffix}")
            if program is None:
                pytest.skip(f"iptables-{variant}{suffix} is not installed")
            (folder / f"iptables{suffix}").symlink_to(program)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with network_lab.node():
        lab = Lab(tmp_path, mode)
        assert lab.backend is not None and lab.backend.title == f"{request.param} ipv4"
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
    if lab.mode == "nftables":
        body = {"spec": {"clusterIP": VIP, "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}}
        lines = service_elements(body)
        assert f"service-ips: {VIP} . tcp . 80 → goto cluster-2" in lines
        assert {line for line in lines if line.startswith("service-endpoints: ")} == {
            f"service-endpoints: {VIP} . tcp . 80 . {n} → {lab.ips[n + 1]} : 8080" for n in (0, 1)
        }
        assert any(line.startswith("service-nodeports: tcp . 30080 → goto nodeport-2") for line in lines)
        return
    dnat = {rule: n for rule, n in counted("KUBE-SEP-").items() if "DNAT" in rule}
    assert len(dnat) == 2 and sum(dnat.values()) == 41


def test_pod_reaches_itself_through_its_service(lab: Lab) -> None:
    lab.serve(0, 8080)
    lab.service(0)
    assert lab.pods[0].ask(VIP, 80) == "pod0 10.244.1.1"
    if lab.mode == "nftables":
        return
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
    assert not lab.proxier.look()
    for command in FLUSHES[lab.mode]:
        subprocess.run(command.split(), check=True)
    assert lab.proxier.look()
    assert lab.proxier.sync() == "Synced full"
    assert lab.pods[0].ask(VIP, 80).startswith("pod1 ")
    assert not lab.proxier.look()


FLUSHES = {
    "iptables": ["iptables -t nat -F", "iptables -t nat -X"],
    "nftables": ["nft flush ruleset"],
}


def test_a_new_proxier_takes_over_and_removes_what_is_stale(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1, 2)
    lab.restart()
    lab.service()
    with pytest.raises(ConnectionRefusedError):
        lab.pods[0].ask(VIP, 80)
    if lab.mode == "nftables":
        listing = subprocess.run(
            ["nft", "list", "ruleset"], capture_output=True, text=True, check=True
        ).stdout
        assert lab.ips[1] not in listing and "chain cluster-2" not in listing
        return
    saved = Iptables().save()
    assert not [c for c in saved["nat"].chains if c.startswith("KUBE-SEP-")]
    assert len([r for r in saved["nat"].rules if r.startswith("-A PREROUTING")]) == 1
    assert len([r for r in saved["filter"].rules if r.startswith("-A FORWARD")]) == 4


def test_affinity_ends_with_its_endpoint(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    lab.service(1, 2, sessionAffinity="ClientIP")
    (first,) = lab.pods[0].tally(VIP, 80, 10)
    other = 1 if first == "pod2" else 2
    lab.service(other, sessionAffinity="ClientIP")
    assert set(lab.pods[0].tally(VIP, 80, 5)) == {f"pod{other}"}
    lab.service(1, 2, sessionAffinity="ClientIP")
    assert set(lab.pods[0].tally(VIP, 80, 10)) == {f"pod{other}"}


def test_affinity_is_forgotten_after_its_timeout(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    config = {"clientIP": {"timeoutSeconds": 1}}
    lab.service(1, 2, sessionAffinity="ClientIP", sessionAffinityConfig=config)
    assert len(lab.pods[0].tally(VIP, 80, 10)) == 1
    seen: set[str] = set()
    for _ in range(20):
        # Each time the memory has run out, another draw.
        threading.Event().wait(2.1)
        seen |= set(lab.pods[0].tally(VIP, 80, 1))
        if len(seen) == 2:
            return
    raise AssertionError(f"twenty draws were all {seen}")


def test_affinity_holds_for_the_node_port_too(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    lab.service(1, 2, sessionAffinity="ClientIP")
    assert len(lab.client.tally("192.0.2.1", 30080, 12)) == 1


def test_local_policy_without_local_endpoint_is_silent_outside_and_works_inside(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(lab.entry(1, node="node-b"), externalTrafficPolicy="Local")
    with lab.client.socket() as sock, pytest.raises(TimeoutError):
        sock.settimeout(0.4)
        sock.connect(("192.0.2.1", 30080))
    assert ask("192.0.2.1", 30080).startswith("pod1 ")
    assert lab.pods[0].ask("192.0.2.1", 30080).startswith("pod1 ")


def test_internal_policy_local_uses_this_nodes_endpoints_only(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    lab.service(1, lab.entry(2, node="node-b"), internalTrafficPolicy="Local")
    assert set(lab.pods[0].tally(VIP, 80, 12)) == {"pod1"}
    assert set(lab.client.tally("192.0.2.1", 30080, 20)) == {"pod1", "pod2"}
    lab.service(lab.entry(2, node="node-b"), internalTrafficPolicy="Local")
    with lab.pods[0].socket() as sock, pytest.raises(TimeoutError):
        sock.settimeout(0.4)
        sock.connect((VIP, 80))


LB = "198.51.100.77"


def reach_by(lab: Lab, address: str) -> None:
    """Let the client send packets for `address` to the node, which would route them on to its pods.

    Were it to send them back where they came from, ICMP redirects would use up what errors are allowed.
    """
    with Netlink() as near, lab.client.netlink() as far:
        near.add_route(f"{address}/32", dev="kpy0")
        far.add_route(f"{address}/32", dev="eth0", gw="192.0.2.1")


def test_load_balancer_address_serves_the_ranges_it_is_meant_for(lab: Lab) -> None:
    lab.serve(1, 8080)
    reach_by(lab, LB)
    lab.service(1, type="LoadBalancer", ingress=LB)
    assert lab.client.ask(LB, 80) == "pod1 10.244.1.1"
    lab.service(1, type="LoadBalancer", ingress=LB, loadBalancerSourceRanges=["192.0.2.0/30", "192.0.2.0/29"])
    assert lab.client.ask(LB, 80).startswith("pod1 ")
    lab.service(1, type="LoadBalancer", ingress=LB, loadBalancerSourceRanges=["203.0.113.0/24"])
    with lab.client.socket() as sock, pytest.raises(TimeoutError):
        sock.settimeout(0.4)
        sock.connect((LB, 80))
    assert lab.pods[0].ask(VIP, 80).startswith("pod1 ")
    lab.service(type="LoadBalancer", ingress=LB)
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask(LB, 80)


def test_load_balancer_address_with_local_policy_keeps_the_clients_address(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    reach_by(lab, LB)
    lab.service(
        1, lab.entry(2, node="node-b"), type="LoadBalancer", ingress=LB, externalTrafficPolicy="Local"
    )
    assert {lab.client.ask(LB, 80) for _ in range(10)} == {"pod1 192.0.2.2"}
    # Inside the cluster the policy does not count.
    assert set(lab.pods[0].tally(LB, 80, 20)) == {"pod1", "pod2"}


def test_external_ips_work_only_where_they_are_allowed(lab: Lab) -> None:
    lab.serve(1, 8080)
    reach_by(lab, LB)
    lab.service(1, externalIPs=[LB])
    with lab.client.socket() as sock, pytest.raises(OSError):
        sock.settimeout(0.4)
        sock.connect((LB, 80))
    lab.restart(external_ip_ranges=("198.51.100.64/26",))
    lab.service(1, externalIPs=[LB])
    assert lab.client.ask(LB, 80) == "pod1 10.244.1.1"
    lab.service(externalIPs=[LB])
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask(LB, 80)


def test_node_ports_answer_on_the_configured_addresses_only(lab: Lab) -> None:
    lab.serve(1, 8080)
    with Netlink() as near, lab.client.netlink() as far:
        near.batch([new_address(near.require("uplink0").index, "198.51.100.1/24")])
        far.add_route("198.51.100.0/24", dev="eth0", gw="192.0.2.1")
    lab.restart(node_port_addresses=("198.51.100.0/24",))
    lab.service(1)
    assert lab.client.ask("198.51.100.1", 30080).startswith("pod1 ")
    with pytest.raises(ConnectionRefusedError):
        lab.client.ask("192.0.2.1", 30080)
    lab.service()
    # What the host itself serves on that port elsewhere stays reachable.
    lab.servers.append(Server("host", None, 30080))
    assert lab.client.ask("192.0.2.1", 30080).startswith("host ")


def test_node_port_is_not_on_loopback(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.service(1)
    with pytest.raises(ConnectionRefusedError):
        ask("127.0.0.1", 30080)


def test_the_same_port_on_tcp_and_udp_goes_to_each_its_own(lab: Lab) -> None:
    lab.serve(1, 8080)
    lab.serve(2, 8080, udp=True)
    meta = {"name": "dns", "namespace": "default"}
    ports = [{"name": p.lower(), "port": 53, "protocol": p, "nodePort": 30053} for p in ("TCP", "UDP")]
    lab.changes.service_event("ADDED", {"metadata": meta, "spec": {"clusterIP": VIP, "ports": ports}})
    for pod, protocol in ((1, "TCP"), (2, "UDP")):
        labels = {"kubernetes.io/service-name": "dns"}
        body = {
            "metadata": {"name": f"dns-{pod}", "namespace": "default", "labels": labels},
            "addressType": "IPv4",
            "ports": [{"name": protocol.lower(), "port": 8080, "protocol": protocol}],
            "endpoints": [lab.entry(pod)],
        }
        lab.changes.slice_event("ADDED", body)
    lab.proxier.sync()
    assert lab.pods[0].ask(VIP, 53).startswith("pod1 ")
    assert lab.pods[0].ask(VIP, 53, udp=True).startswith("pod2 ")
    assert lab.client.ask("192.0.2.1", 30053, udp=True).startswith("pod2 ")


def test_terminating_endpoints_serve_while_there_is_no_other(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    leaving = {"ready": False, "serving": True, "terminating": True}
    lab.service(lab.entry(1, conditions=leaving), 2)
    assert set(lab.pods[0].tally(VIP, 80, 12)) == {"pod2"}
    lab.service(lab.entry(1, conditions=leaving))
    assert set(lab.pods[0].tally(VIP, 80, 5)) == {"pod1"}


def test_hints_keep_traffic_in_the_nodes_zone(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    here, there = ({"hints": {"forZones": [{"name": z}]}} for z in ("z1", "z2"))
    lab.service(lab.entry(1, **here), lab.entry(2, **there))
    assert set(lab.pods[0].tally(VIP, 80, 30)) == {"pod1", "pod2"}
    labels = {"topology.kubernetes.io/zone": "z2"}
    lab.changes.node_event("ADDED", {"metadata": {"name": "node-a", "labels": labels}})
    assert lab.proxier.sync() == "Synced partial"
    assert set(lab.pods[0].tally(VIP, 80, 12)) == {"pod2"}


def test_every_endpoint_gets_its_share_while_endpoints_come_and_go(lab: Lab) -> None:
    for pod in (0, 1, 2):
        lab.serve(pod, 8080)
    for endpoints in ((0, 1, 2), (0, 2), (1, 2), (1,), (0, 1, 2)):
        lab.service(*endpoints)
        seen = Counter(ask(VIP, 80).split()[0] for _ in range(30 * len(endpoints)))
        assert set(seen) == {f"pod{n}" for n in endpoints}
        assert min(seen.values()) > 10, seen


def test_an_address_that_moves_to_another_service_is_never_lost(lab: Lab) -> None:
    for pod in (1, 2):
        lab.serve(pod, 8080)
    lab.service(1)
    meta = {"name": "heir", "namespace": "default"}
    spec = {"clusterIP": VIP, "ports": [{"name": "web", "port": 80}]}
    lab.changes.service_event("ADDED", {"metadata": meta, "spec": spec})
    body = {
        "metadata": {**meta, "name": "heir-x", "labels": {"kubernetes.io/service-name": "heir"}},
        "addressType": "IPv4",
        "ports": [{"name": "web", "port": 8080}],
        "endpoints": [lab.entry(2)],
    }
    lab.changes.slice_event("ADDED", body)
    lab.proxier.sync()
    lab.changes.service_event("DELETED", {"metadata": {"name": "web", "namespace": "default"}})
    lab.proxier.sync()
    assert set(lab.pods[0].tally(VIP, 80, 10)) == {"pod2"}


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


def sync_once(mode: str, config: ProxyConfig, *services: dict[str, Any]) -> None:
    changes = Changes("n")
    for body in services:
        changes.service_event("ADDED", body)
    (backend,) = backends(mode, config, [4])
    families = [AddressFamily(changes, backend, Conntrack())]
    Proxier(config, families, changes.changed, Health(60)).sync()
    backend.close()


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
