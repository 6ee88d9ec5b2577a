"""Services on real packets: pods, a node and a client in namespaces, and each backend by turns."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections import Counter

import pytest
from network_lab import Server, ask
from services_lab import VIP, Lab, counted

from cni.netns import in_namespace
from kubelet_py.cli.inspect_nft import service_elements
from proxy.iptables import Iptables

pytestmark = pytest.mark.privileged


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
