"""Network namespaces to play node, pod and client in, and small servers and clients that live in them.

Everything happens in the test's own process: a namespace is held by a descriptor, a socket belongs to the
namespace of the thread that made it. Nothing is left when the descriptors are closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from cni import conflist, skeleton
from cni.invoke import Invoker
from cni.netlink import Netlink
from cni.netns import in_namespace
from cni.rtnetlink import new_address, new_route, new_veth, set_link

CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def node() -> Iterator[None]:
    """The calling thread in a fresh network namespace (loopback up), and back again afterwards."""
    old = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    _check(_libc.unshare(CLONE_NEWNET))
    try:
        with Netlink() as netlink:
            netlink.batch([set_link(1, up=True)])
        yield
    finally:
        _check(_libc.setns(old, CLONE_NEWNET))
        os.close(old)


class Namespace:
    """A fresh network namespace held by a descriptor; `path` is what CNI_NETNS would be."""

    def __init__(self) -> None:
        found: list[int] = []

        def make() -> None:
            _check(_libc.unshare(CLONE_NEWNET))
            found.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        self.fd = found[0]

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    def netlink(self) -> Netlink:
        return Netlink(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def socket(
        self, kind: int = socket.SOCK_STREAM, family: int = socket.AF_INET, protocol: int = 0
    ) -> socket.socket:
        made = in_namespace(self.fd, lambda: socket.socket(family, kind, protocol))
        made.settimeout(3)
        return made

    def ask(self, address: str, port: int, *, udp: bool = False, protocol: int = 0) -> str:
        """Connect from inside and return what the server says: "<its name> <our address as it sees it>"."""
        kind = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM
        return ask(address, port, self.socket(kind, family_of(address), protocol))

    def tally(
        self, address: str, port: int, times: int, *, udp: bool = False, protocol: int = 0
    ) -> Counter[str]:
        return Counter(
            self.ask(address, port, udp=udp, protocol=protocol).split()[0] for _ in range(times)
        )


def ask(address: str, port: int, channel: socket.socket | None = None) -> str:
    """The same from the calling thread's namespace when no socket is given."""
    with channel or socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        # An SCTP packet that is lost comes again after three seconds at the earliest (sctp's rto_initial).
        sock.settimeout(20 if sock.proto == socket.IPPROTO_SCTP else 3)
        sock.connect((address, port))
        if sock.type == socket.SOCK_DGRAM:
            sock.send(b"?")
        return sock.recv(200).decode()


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def lacks_sctp() -> str:
    """Why there are no SCTP sockets, "" where there are; trying loads the kernel's module."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError as error:
        return f"this kernel has no SCTP sockets: {error.strerror}"
    return ""


class Server:
    """Answers every TCP (or, by its protocol number, SCTP) connection or UDP packet with its name and the
    sender's address."""

    def __init__(
        self,
        name: str,
        place: Namespace | None,
        port: int,
        *,
        udp: bool = False,
        address: str = "0.0.0.0",
        protocol: int = 0,
    ) -> None:
        kind, family = socket.SOCK_DGRAM if udp else socket.SOCK_STREAM, family_of(address)
        self._socket = (
            place.socket(kind, family, protocol) if place else socket.socket(family, kind, protocol)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # A blocked recvfrom is not woken by closing the socket.
        self._socket.settimeout(0.1 if udp else None)
        self._open = True
        self._socket.bind((address, port))
        self._name = name
        self._udp = udp
        if not udp:
            self._socket.listen(50)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while self._open:
                if self._udp:
                    try:
                        _data, sender = self._socket.recvfrom(100)
                    except TimeoutError:
                        continue
                    self._socket.sendto(f"{self._name} {sender[0]}".encode(), sender)
                else:
                    connection, sender = self._socket.accept()
                    with connection:
                        connection.send(f"{self._name} {sender[0]}".encode())

    def close(self) -> None:
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(3)
        self._socket.close()


def uplink(
    client: Namespace,
    *,
    node_ip: str = "192.0.2.1",
    client_ip: str = "192.0.2.2",
    node_ip6: str = "",
    client_ip6: str = "",
    gso: int = 0,
) -> None:
    """A wire between the present namespace ("uplink0", with a default route) and the client's."""
    with Netlink() as near, client.netlink() as far:
        near.batch([new_veth("uplink0", peer="eth0", peer_netns=client.fd, gso=gso)])
        index, other = near.require("uplink0").index, far.require("eth0").index
        near.batch([new_address(index, f"{node_ip}/24"), new_route("0.0.0.0/0", index=index, gw=client_ip)])
        far.batch([set_link(1, up=True), set_link(other, up=True), new_address(other, f"{client_ip}/24")])
        if node_ip6:
            near.batch([new_address(index, f"{node_ip6}/64"), new_route("::/0", index=index, gw=client_ip6)])
            far.batch([new_address(other, f"{client_ip6}/64")])


def pod_network(folder: Path, gso: int = 0) -> Invoker:
    """The bridge network 10.244.1.0/24 of cluster 10.244.0.0/16 by our plugins, its files in `folder`."""
    skeleton.write_executables(folder / "bin", sys.executable)
    body = conflist.bridge_network(
        name="lab",
        bridge="kpy0",
        subnets=["10.244.1.0/24"],
        cluster_cidrs=["10.244.0.0/16"],
        data_dir=folder / "d",
        gso=gso,
    )
    conflist.write(folder / "net.d/10.conflist", body)
    return Invoker(
        config_dir=folder / "net.d",
        bin_dirs=[folder / "bin"],
        cache_dir=folder / "cache",
        own_bin_dir=folder / "bin",
    )
