"""The proxy's small web servers: on all addresses of both IP versions, and without asking a name server."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import replace

import pytest

from proxy import own_addresses
from proxy.changes import Endpoint, ServicePort
from proxy.healthcheck import Health, ServiceHealth, StatusServer

PAGES = {"": lambda: (200, json.dumps({"well": True}).encode(), {})}


def lacks_ipv6() -> str:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        return f"this host has no IPv6 loopback: {error.strerror}"
    return ""


OWN = ["127.0.0.1", "192.0.2.5", "192.0.2.6", "10.244.0.1", "::1", "2001:db8::5", "fe80::5"]


@pytest.mark.parametrize(
    ("ranges", "versions", "hosts"),
    [
        ((), [4], ["0.0.0.0"]),
        ((), [6], ["::"]),
        ((), [4, 6], ["::"]),
        (("0.0.0.0/0", "::/0"), [4, 6], ["::"]),
        (("192.0.2.5/32", "2001:db8::5/128"), [4, 6], ["192.0.2.5", "2001:db8::5"]),
        (("192.0.2.0/24", "2001:db8::5/128"), [4], ["192.0.2.5", "192.0.2.6"]),
        (("fe80::/10", "198.51.100.0/24"), [4, 6], []),
    ],
)
def test_health_ports_are_where_node_ports_are(
    ranges: tuple[str, ...], versions: list[int], hosts: list[str]
) -> None:
    assert own_addresses.chosen(ranges, versions, OWN) == hosts


def test_the_kernel_tells_this_hosts_addresses() -> None:
    assert "127.0.0.1" in own_addresses.read()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_health_port_is_on_the_given_addresses_only_and_on_all_or_none() -> None:
    hosts = ["127.0.0.1", "127.0.0.2"]
    ports, number = ServiceHealth(Health(60), lambda: hosts), free_port()
    service = ServicePort("d", "s", "", "tcp", "10.96.0.1", 80, health_check_port=number)
    try:
        ports.change(4, {("d", "s"): ((service, ()),)})
        for host in hosts:
            socket.create_connection((host, number), 30).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.3", number), 30)
        ports.change(4, {("d", "s"): ()})
        with socket.socket() as other:
            # What is left of the connections above may still hold the port.
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.2", number))  # now the second address cannot be had
            other.listen()
            ports.change(4, {("d", "s"): ((service, ()),)})
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", number), 30)
    finally:
        ports.stop()


def test_a_pod_of_both_families_counts_once_and_the_port_closes_with_its_policy() -> None:
    health = Health(60)
    health.synced()
    ports, number = ServiceHealth(health, lambda: ["127.0.0.1"]), free_port()
    checked = ServicePort("d", "s", "", "tcp", "10.96.0.1", 80, health_check_port=number)
    plain = replace(checked, health_check_port=0)
    pod = {version: Endpoint(ip, 80, local=True) for version, ip in ((4, "10.0.0.1"), (6, "fd00::1"))}
    try:
        for version, endpoint in pod.items():
            ports.change(version, {("d", "s"): ((checked, (endpoint,)),)})
        with urllib.request.urlopen(f"http://127.0.0.1:{number}/", timeout=30) as answer:
            assert json.load(answer)["localEndpoints"] == 1
            assert answer.headers["X-Load-Balancing-Endpoint-Weight"] == "1"
        for version, endpoint in pod.items():
            ports.change(version, {("d", "s"): ((plain, (endpoint,)),)})
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", number), 30)
    finally:
        ports.stop()


@pytest.mark.parametrize("versions", [[4], [4, 6]], ids=["IPv4 alone", "both"])
def test_a_server_answers_at_the_addresses_of_its_versions(versions: list[int]) -> None:
    if 6 in versions and lacks_ipv6():
        pytest.skip(lacks_ipv6())
    (host,) = own_addresses.chosen((), versions, ())
    server = StatusServer((host, 0), PAGES)
    server.start()
    try:
        for host in ("127.0.0.1", "[::1]")[: len(versions)]:
            with urllib.request.urlopen(f"http://{host}:{server.port}/", timeout=30) as answer:
                assert json.load(answer) == {"well": True}
    finally:
        server.stop()


def test_the_hosts_name_is_not_asked_for() -> None:
    server = StatusServer(("0.0.0.0", 0), PAGES)
    server.start()
    server.stop()
    assert server._server.server_name == "0.0.0.0"
