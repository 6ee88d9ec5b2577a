"""SCTP through a Service: by packets made by hand, which a kernel without an SCTP stack translates, too; and
by sockets, where there are any."""

from __future__ import annotations

import socket
import struct

import pytest
from network_lab import Namespace, Server, ask, lacks_sctp
from services_lab import VIP, Lab

from cni.netns import in_namespace

pytestmark = pytest.mark.privileged

INIT, INIT_ACK = 1, 2
CLIENT_PORT, CLIENT_TAG, POD_TAG = 40001, 0x11223344, 0x55667788


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def packet(source: int, target: int, tag: int, kind: int, own_tag: int) -> bytes:
    """One chunk of 20 bytes behind the common header, whose checksum conntrack looks at (RFC 9260, 3.1)."""
    chunk = struct.pack("!BBHIIHHI", kind, 0, 20, own_tag, 65536, 1, 1, 1)
    if kind == INIT_ACK:  # with the state cookie that it must carry
        chunk = struct.pack("!BBHIIHHI", kind, 0, 28, own_tag, 65536, 1, 1, 1) + struct.pack("!HHI", 7, 8, 9)
    whole = struct.pack("!HHII", source, target, tag, 0) + chunk
    return whole[:8] + struct.pack("<I", crc32c(whole)) + whole[12:]


def raw(place: Namespace, protocol: int = socket.IPPROTO_SCTP) -> socket.socket:
    made = in_namespace(place.fd, lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
    made.settimeout(10)
    return made


def received(channel: socket.socket) -> tuple[str, int, int, bytes]:
    """Sender, ports and the SCTP part of the next packet, whose checksum must be right."""
    data, (sender, _) = channel.recvfrom(2000)
    part = data[(data[0] & 15) * 4 :]
    assert struct.unpack_from("<I", part, 8)[0] == crc32c(part[:8] + bytes(4) + part[12:])
    source, target = struct.unpack_from("!HH", part)
    return sender, source, target, part


def define(lab: Lab, *endpoints: int) -> None:
    meta = {"name": "tel", "namespace": "default"}
    port = {"name": "m3ua", "port": 2905, "protocol": "SCTP", "nodePort": 30905}
    lab.changes.service_event(
        "ADDED", {"metadata": meta, "spec": {"clusterIP": VIP, "ports": [port], "type": "NodePort"}}
    )
    labels = {"kubernetes.io/service-name": "tel"}
    body = {
        "metadata": {**meta, "name": "tel-x", "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "m3ua", "port": 8905, "protocol": "SCTP"}],
        "endpoints": [lab.entry(n) for n in endpoints],
    }
    lab.changes.slice_event("ADDED", body)
    lab.proxier.sync()


@pytest.fixture
def by_hand() -> None:
    if not lacks_sctp():
        pytest.skip("this kernel has SCTP sockets, and answers for the pod before the test can")


@pytest.mark.parametrize(("place", "address", "port"), [("pod", VIP, 2905), ("client", "192.0.2.1", 30905)])
def test_an_init_reaches_the_endpoint_and_its_answer_comes_from_the_service(
    by_hand: None, lab: Lab, place: str, address: str, port: int
) -> None:
    define(lab, 1)
    caller = lab.client if place == "client" else lab.pods[0]
    with raw(caller) as near, raw(lab.pods[1]) as far:
        near.sendto(packet(CLIENT_PORT, port, 0, INIT, CLIENT_TAG), (address, 0))
        sender, source, target, part = received(far)
        assert (target, part[12]) == (8905, INIT)
        # A pod's address is kept; who comes from outside has the node's.
        assert sender == (lab.ips[0] if place == "pod" else "10.244.1.1")
        far.sendto(packet(8905, source, CLIENT_TAG, INIT_ACK, POD_TAG), (sender, 0))
        sender, source, target, part = received(near)
        assert (sender, source, target, part[12]) == (address, port, CLIENT_PORT, INIT_ACK)


def test_a_service_without_endpoints_refuses_sctp(lab: Lab) -> None:
    define(lab)
    with raw(lab.pods[0]) as near, raw(lab.pods[0], socket.IPPROTO_ICMP) as complaints:
        near.sendto(packet(CLIENT_PORT, 2905, 0, INIT, CLIENT_TAG), (VIP, 0))
        data, _ = complaints.recvfrom(2000)
        kind, code = data[(data[0] & 15) * 4 :][:2]
        assert (kind, code) == (3, 3)  # port unreachable


@pytest.fixture
def sockets() -> None:
    problem = lacks_sctp()
    if problem:
        pytest.skip(problem)


def serve(lab: Lab, *pods: int) -> None:
    lab.servers += [Server(f"pod{n}", lab.pods[n], 8905, protocol=socket.IPPROTO_SCTP) for n in pods]


def test_connections_reach_every_endpoint_by_cluster_ip_and_node_port(sockets: None, lab: Lab) -> None:
    """Each asks, is answered and ends; the sender is kept or hidden as with TCP."""
    sctp = socket.IPPROTO_SCTP
    define(lab, 1, 2)
    serve(lab, 1, 2)
    inside = lab.pods[0].tally(VIP, 2905, 20, protocol=sctp)
    outside = lab.client.tally("192.0.2.1", 30905, 20, protocol=sctp)
    assert set(inside) == set(outside) == {"pod1", "pod2"}
    assert lab.pods[0].ask(VIP, 2905, protocol=sctp).endswith(f" {lab.ips[0]}")
    assert lab.client.ask("192.0.2.1", 30905, protocol=sctp).endswith(" 10.244.1.1")
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, sctp) as own:
        assert ask(VIP, 2905, own).startswith("pod"), "from the node itself"


def test_an_endpoint_that_goes_takes_no_new_connections(sockets: None, lab: Lab) -> None:
    sctp = socket.IPPROTO_SCTP
    define(lab, 1, 2)
    serve(lab, 1, 2)
    define(lab, 2)
    assert set(lab.pods[0].tally(VIP, 2905, 10, protocol=sctp)) == {"pod2"}
    assert set(lab.client.tally("192.0.2.1", 30905, 10, protocol=sctp)) == {"pod2"}


def test_a_connection_outlives_changes_of_its_service(sockets: None, lab: Lab) -> None:
    define(lab, 1)
    server = lab.pods[1].socket(protocol=socket.IPPROTO_SCTP)
    client = lab.client.socket(protocol=socket.IPPROTO_SCTP)
    with server, client:
        server.settimeout(30)
        client.settimeout(30)
        server.bind(("0.0.0.0", 8905))
        server.listen()
        client.connect(("192.0.2.1", 30905))
        accepted, _ = server.accept()
        with accepted:
            accepted.settimeout(30)
            for endpoints in ((1, 2), (2,), (1,)):
                define(lab, *endpoints)
                client.send(b"there")
                assert accepted.recv(100) == b"there"
                accepted.send(b"back")
                assert client.recv(100) == b"back"
