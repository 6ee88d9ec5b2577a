"""The proxy's small web servers: on all addresses of both IP versions, and without asking a name server."""

from __future__ import annotations

import json
import socket
import urllib.request

import pytest

from proxy.healthcheck import StatusServer, everywhere

PAGES = {"": lambda: (200, json.dumps({"well": True}).encode(), {})}


def lacks_ipv6() -> str:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError as error:
        return f"this host has no IPv6 loopback: {error.strerror}"
    return ""


def test_everywhere_is_the_ipv6_address_where_ipv6_is_served() -> None:
    assert [everywhere(v) for v in ([4], [6], [4, 6])] == ["0.0.0.0", "::", "::"]


@pytest.mark.parametrize("versions", [[4], [4, 6]], ids=["IPv4 alone", "both"])
def test_a_server_answers_at_the_addresses_of_its_versions(versions: list[int]) -> None:
    if 6 in versions and lacks_ipv6():
        pytest.skip(lacks_ipv6())
    server = StatusServer((everywhere(versions), 0), PAGES)
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
