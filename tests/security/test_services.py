"""What neighbours and Services must not reach: checklist K03 and K04, with real packets."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cni.netns import in_namespace
from tests.network_lab import Namespace, Server, ask
from tests.services_lab import Lab, lab

__all__ = ["lab"]

pytestmark = pytest.mark.privileged

NODE, STOLEN = "192.0.2.1", "198.51.100.53"
PRIVATE_PORT, NODE_PORT = 8123, 30080


def sends_to_loopback(client: Namespace) -> None:
    """The neighbour's kernel hands packets for 127.0.0.1 to the node, instead of keeping them."""

    def prepare() -> None:
        for name in ("all", "eth0"):
            Path(f"/proc/sys/net/ipv4/conf/{name}/route_localnet").write_text("1")
            Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").write_text("0")
        routed = f"route add 127.0.0.1/32 via {NODE} dev eth0 src 192.0.2.2"
        for command in ("link set lo down", "addr flush dev lo", routed):
            subprocess.run(["ip", *command.split()], check=True, capture_output=True)
        asked = ["ip", "route", "get", "127.0.0.1"]
        assert "dev eth0" in subprocess.run(asked, check=True, capture_output=True, text=True).stdout

    in_namespace(client.fd, prepare)


@pytest.fixture
def private_server(lab: Lab) -> Iterator[Server]:
    """Something of the node's own that listens, and that only the node itself should reach by 127.0.0.1."""
    server = Server("private", None, PRIVATE_PORT)
    yield server
    server.close()


@pytest.mark.parametrize("port", [PRIVATE_PORT, NODE_PORT])
def test_K03_a_neighbour_does_not_reach_the_nodes_loopback(
    lab: Lab, private_server: Server, port: int
) -> None:
    """K03, CVE-2020-8558 (k/k#92315, #90259): neither a local server nor a node port, by 127.0.0.1."""
    lab.serve(0, 8080)
    lab.service(0)
    assert lab.client.ask(NODE, NODE_PORT).startswith("pod0"), "the node port itself works"
    assert ask("127.0.0.1", PRIVATE_PORT).startswith("private"), "and so does the node's own loopback"
    sends_to_loopback(lab.client)
    with pytest.raises(OSError):
        lab.client.ask("127.0.0.1", port)


def test_K04_external_addresses_of_a_service_take_no_traffic(lab: Lab) -> None:
    """K04, CVE-2020-8554: whoever may write a Service could otherwise catch the packets to any address."""
    server = Server("owner", lab.client, 80)
    try:
        in_namespace(
            lab.client.fd,
            lambda: subprocess.run(
                ["ip", "addr", "add", f"{STOLEN}/32", "dev", "eth0"], check=True, capture_output=True
            ),
        )
        lab.serve(0, 8080)
        lab.service(0, externalIPs=[STOLEN])
        assert ask("10.96.0.50", 80).startswith("pod0"), "the Service itself works"
        assert ask(STOLEN, 80).startswith("owner"), "from the node"
        assert lab.pods[1].ask(STOLEN, 80).startswith("owner"), "and from a pod"
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True, env=os.environ)
        assert STOLEN not in rules.stdout
    finally:
        server.close()
