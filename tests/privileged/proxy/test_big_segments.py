"""Pods whose TCP hands out more than 64 kB at a time: what arrives by each way is what was sent.

The kernel writes 0 for the length of such an IPv4 packet, so every rule, translation and bridge on its way
must know it by other means; and a device that takes less must be given packets of the MTU's size.
"""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
import services_lab
from network_lab import Namespace
from services_lab import VIP, Lab

from cni.netlink import Netlink
from cni.netns import in_namespace
from proxy.modes import remove_other

pytestmark = pytest.mark.privileged

SIZE = 196608
MSG_TRUNC = getattr(socket, "MSG_TRUNC", 0x20)
ETH_P_ALL = 3


@pytest.fixture(params=["iptables", "nftables"])
def lab(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    with network_lab.node():
        lab = Lab(tmp_path, request.param, SIZE)
        with Netlink() as netlink:
            if not netlink.require("kpy0").gso:
                lab.close()
                pytest.skip("this kernel has no gso_ipv4_max_size (it needs 6.3)")
        remove_other(request.param)
        yield lab
        lab.close()


class Watch:
    """The largest frame that passes an interface of a namespace (None: the calling thread's)."""

    def __init__(self, place: Namespace | None, interface: str) -> None:
        def make() -> socket.socket:
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))

        self._socket = in_namespace(place.fd, make) if place else make()
        self._socket.bind((interface, 0))
        self._socket.settimeout(0.05)
        self.largest, self._open = 0, True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while self._open:
            try:
                self.largest = max(self.largest, self._socket.recv_into(bytearray(1), 1, MSG_TRUNC))
            except TimeoutError:
                continue

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join()
        self._socket.close()


class Sink:
    """Takes one connection after another, and answers each with the digest of all that it was sent."""

    def __init__(self, place: Namespace, port: int) -> None:
        self._socket = place.socket()
        self._socket.settimeout(None)
        self._socket.bind(("0.0.0.0", port))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                digest = hashlib.sha256()
                while data := connection.recv(1 << 20):
                    digest.update(data)
                connection.sendall(digest.digest())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()


@pytest.fixture
def sinks(lab: Lab) -> Iterator[None]:
    made = [Sink(lab.pods[0], 8080), Sink(lab.pods[1], 8080), Sink(lab.client, 8080)]
    yield
    for sink in made:
        sink.close()


def deliver(sender: Namespace, address: str, port: int, watch: Watch, *, beyond: int, least: int) -> None:
    """Send until a frame larger than `beyond` was seen, `least` bytes at the least; all must have arrived."""
    data, digest = random.Random(75).randbytes(1 << 20), hashlib.sha256()
    deadline, sent = time.monotonic() + 60, 0
    with sender.socket() as channel:
        channel.settimeout(60)
        channel.connect((address, port))
        while sent < least or watch.largest <= beyond:
            assert time.monotonic() < deadline, f"no frame beyond {beyond} in {sent} bytes: {watch.largest}"
            channel.sendall(data)
            digest.update(data)
            sent += len(data)
        channel.shutdown(socket.SHUT_WR)
        assert channel.recv(64) == digest.digest()


def near(pod: Namespace) -> str:
    """The node's end of a pod's pair."""
    with pod.netlink() as inside, Netlink() as host:
        far = inside.require("eth0")
        near = host.link(far.peer)
        assert near is not None and (far.gso, near.gso) == (SIZE, SIZE)
        return near.name


def test_large_packets_pass_the_bridge_and_a_cluster_ip(lab: Lab, sinks: None) -> None:
    lab.service(1)
    with Watch(None, near(lab.pods[1])) as watch:
        deliver(lab.pods[0], lab.ips[1], 8080, watch, beyond=1 << 16, least=4 << 20)
    with Watch(None, near(lab.pods[1])) as watch:
        deliver(lab.pods[0], VIP, 80, watch, beyond=1 << 16, least=4 << 20)


def test_large_packets_of_a_pod_come_back_to_it_through_its_service(lab: Lab, sinks: None) -> None:
    lab.service(0)
    with Watch(None, near(lab.pods[0])) as watch:
        deliver(lab.pods[0], VIP, 80, watch, beyond=1 << 16, least=4 << 20)


def test_what_leaves_by_an_uplink_that_takes_less_is_cut_before_it(lab: Lab, sinks: None) -> None:
    with Watch(lab.client, "eth0") as out, Watch(None, near(lab.pods[0])) as watch:
        deliver(lab.pods[0], "192.0.2.2", 8080, watch, beyond=1 << 16, least=4 << 20)
    assert 0 < out.largest <= (1 << 16) + 14


def test_pods_are_wired_as_the_kernel_does_where_nothing_is_said(tmp_path: Path) -> None:
    with network_lab.node():
        lab = services_lab.Lab(tmp_path, "nftables")
        with lab.pods[0].netlink() as inside:
            assert inside.require("eth0").gso in (0, 1 << 16)
        lab.close()
