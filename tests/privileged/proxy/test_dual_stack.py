"""Services with an address of each family: the same packets over IPv4 and IPv6, through each backend."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

import network_lab
import pytest
from network_lab import Namespace, Server, uplink

from cni.netns import in_namespace
from proxy.changes import Changes
from proxy.config import ProxyConfig
from proxy.conntrack import Conntrack
from proxy.healthcheck import Health
from proxy.modes import backends, remove_iptables, remove_nftables
from proxy.proxier import AddressFamily, Proxier

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(not os.path.exists("/proc/net/if_inet6"), reason="the kernel has no IPv6"),
]

VIPS = {4: "10.96.0.9", 6: "fd00:96::9"}
NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
PODS = {4: ("10.244.0.1", "10.244.0.2"), 6: ("fd00:244::1", "fd00:244::2")}
CONFIG = ProxyConfig(hostname="n", cluster_cidr="10.244.0.0/16,fd00:244::/64")


class Answering:
    """Says its own address to whoever connects."""

    def __init__(self, address: str) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._socket = socket.create_server((address, 8080), family=family)
        self._address = address
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.sendall(self._address.encode())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Lab:
    """A node with four addresses for endpoints, and a client on its uplink."""

    def __init__(self, mode: str) -> None:
        self.client = Namespace()
        uplink(self.client)
        for words in (
            "-6 address add 2001:db8::1/64 dev uplink0 nodad",
            *(
                f"address add {ip} dev lo nodad" if ":" in ip else f"address add {ip} dev lo"
                for ip in (*PODS[4], *PODS[6])
            ),
            "-6 route add default via 2001:db8::2 dev uplink0",
        ):
            subprocess.run(["ip", *words.split()], check=True)
        there = "ip -6 address add 2001:db8::2/64 dev eth0 nodad"
        in_namespace(self.client.fd, lambda: subprocess.run(there.split(), check=True))
        self.servers = [Answering(ip) for family in PODS.values() for ip in family]
        changed = threading.Event()
        self.families = [
            AddressFamily(Changes("n", b.version, changed), b, Conntrack(b.version))
            for b in backends(mode, CONFIG, [4, 6])
        ]
        self.proxier = Proxier(CONFIG, self.families, changed, Health(60))

    def event(self, kind: str, body: dict[str, Any]) -> None:
        for family in self.families:
            getattr(family.changes, kind)("ADDED", body)

    def service(self, endpoints: int, *, first: int = 0, protocol: str = "TCP", **spec: Any) -> None:
        """So many endpoints of each family, beginning with that of number `first`."""
        meta = {"name": "web", "namespace": "default"}
        ports = [{"name": "", "port": 80, "nodePort": 30080, "protocol": protocol}]
        body = {"clusterIP": VIPS[4], "clusterIPs": list(VIPS.values()), "ports": ports, **spec}
        self.event("service_event", {"metadata": meta, "spec": body})
        for version, pods in PODS.items():
            labels = {"kubernetes.io/service-name": "web"}
            self.event(
                "slice_event",
                {
                    "metadata": {"name": f"web-{version}", "namespace": "default", "labels": labels},
                    "addressType": f"IPv{version}",
                    "ports": [{"name": "", "port": 8080, "protocol": protocol}],
                    "endpoints": [
                        {"addresses": [ip], "nodeName": "n"} for ip in pods[first : first + endpoints]
                    ],
                },
            )
        self.proxier.sync()

    def ask(self, place: str, version: int, address: str, port: int) -> str:
        with self.socket(place, version) as sock:
            sock.connect((address, port))
            return sock.recv(100).decode()

    def socket(self, place: str, version: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
        family = socket.AF_INET6 if version == 6 else socket.AF_INET

        def make() -> socket.socket:
            return socket.socket(family, kind)

        made = in_namespace(self.client.fd, make) if place == "client" else make()
        made.settimeout(10)
        return made

    def close(self) -> None:
        for server in self.servers:
            server.close()
        for family in self.families:
            family.backend.close()
        self.client.close()


@pytest.fixture(params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with network_lab.node():
        made = Lab(request.param)
        yield made
        made.close()
        # The namespace goes; nothing of ours would have been left in it.
        assert (remove_iptables(), remove_nftables()) == (
            request.param == "iptables",
            request.param == "nftables",
        )


def test_both_addresses_lead_to_endpoints_of_their_family(lab: Lab) -> None:
    lab.service(2)
    for version in (4, 6):
        assert {lab.ask("node", version, VIPS[version], 80) for _ in range(30)} == set(PODS[version])
        assert {lab.ask("client", version, NODE[version], 30080) for _ in range(30)} == set(PODS[version])


def test_without_endpoints_both_refuse(lab: Lab) -> None:
    lab.service(0)
    for version in (4, 6):
        for place, address, port in (("node", VIPS[version], 80), ("client", NODE[version], 30080)):
            with pytest.raises(ConnectionRefusedError):
                lab.ask(place, version, address, port)


def test_affinity_holds_in_both(lab: Lab) -> None:
    lab.service(2, sessionAffinity="ClientIP")
    for version in (4, 6):
        assert len({lab.ask("node", version, VIPS[version], 80) for _ in range(12)}) == 1
        assert len({lab.ask("client", version, NODE[version], 30080) for _ in range(12)}) == 1


def test_ipv6_node_port_is_not_on_loopback(lab: Lab) -> None:
    lab.service(1)
    with pytest.raises(ConnectionRefusedError):
        lab.ask("node", 6, "::1", 30080)


@pytest.mark.parametrize("place", ["node", "client"])
@pytest.mark.parametrize("version", [4, 6])
def test_udp_flows_leave_an_endpoint_that_is_gone(lab: Lab, version: int, place: str) -> None:
    servers = [Server(f"pod{n}", None, 8080, udp=True, address=ip) for n, ip in enumerate(PODS[version])]
    lab.service(1, protocol="UDP")
    other = lab.socket(place, version, socket.SOCK_DGRAM)
    with lab.socket(place, version, socket.SOCK_DGRAM) as sock, other:
        for one in (sock, other):
            one.connect((VIPS[version], 80) if place == "node" else (NODE[version], 30080))
        assert answer(sock) == "pod0"
        lab.service(1, first=1, protocol="UDP")
        assert answer(sock) == "pod1"
        lab.service(0, protocol="UDP")
        # A sender on the node itself is told by EPERM that its packet did not go out.
        with pytest.raises((ConnectionRefusedError, PermissionError)):
            answer(sock)
        lab.service(1, protocol="UDP")
        assert answer(other) == "pod0"
    for server in servers:
        server.close()


def answer(sock: socket.socket) -> str:
    """Who answers on this flow; asked again until somebody does, since UDP may lose a packet."""
    deadline = time.monotonic() + 20
    sock.settimeout(1)
    while True:
        sock.send(b"?")
        try:
            return sock.recv(100).decode().split()[0]
        except TimeoutError:
            assert time.monotonic() < deadline, "nobody answered"
