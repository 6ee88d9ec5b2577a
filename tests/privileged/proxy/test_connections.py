"""Connections through a Service outlive syncs, restarts and SIGKILL of the proxy, and new ones never fail.

KUBELET_PY_CONNECTIONS sets how many are held (default 10,000, or what a process may open).
"""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import network_lab
import pytest
from proxy_lab import Api, endpoints, node, service, start, write_kubeconfig

pytestmark = pytest.mark.privileged

FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
HELD = int(os.environ.get("KUBELET_PY_CONNECTIONS") or min(10_000, FILES - 200))
VIP = ("10.96.0.9", 80)
BACKENDS = ("198.18.0.1", "198.18.0.2")


ECHO = """
import contextlib, resource, selectors, socket, sys
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
listener = socket.create_server((sys.argv[1], 8080), backlog=4096)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            selector.register(listener.accept()[0], selectors.EVENT_READ)
            continue
        data = b""
        with contextlib.suppress(OSError):
            data = key.fileobj.recv(100)
            key.fileobj.sendall(data)
        if not data:
            selector.unregister(key.fileobj)
            key.fileobj.close()
"""


class Echo:
    """Answers every byte on every connection, in a process of its own for the open files."""

    def __init__(self, address: str) -> None:
        command = [sys.executable, "-c", ECHO, address]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Newcomers:
    """Connects anew all the time; every failure is kept."""

    def __init__(self) -> None:
        self.failures: list[str] = []
        self.made = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with connected() as sock:
                    exchange(sock)
                self.made += 1
            except OSError as error:
                self.failures.append(repr(error))
            self._stop.wait(0.002)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)


def connected() -> socket.socket:
    sock = socket.socket()
    sock.settimeout(30)
    # So that thousands of closed ones do not use up the ports.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    try:
        sock.connect(VIP)
    except OSError:
        sock.close()
        raise
    return sock


def resent() -> int:
    """How often an answer to a SYN did not come in time (TCPSynRetrans of this thread's namespace): a moment
    without rules shows here, where the second SYN would hide it."""
    lines = [line.split() for line in Path("/proc/thread-self/net/netstat").read_text().splitlines()]
    names, values = (line for line in lines if line[0] == "TcpExt:")
    return int(dict(zip(names, values, strict=True))["TCPSynRetrans"])


def exchange(sock: socket.socket) -> None:
    sock.sendall(b"x")
    if sock.recv(1) != b"x":
        raise ConnectionError("closed")


@pytest.fixture
def api() -> Iterator[Api]:
    needed = HELD + 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        pytest.skip(f"{HELD} connections need {needed} open files, {hard} are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    with network_lab.node():
        for address in BACKENDS:
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        subprocess.run(["ip", "route", "add", "10.96.0.0/12", "dev", "lo"], check=True)
        made = Api()
        yield made
        made.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def reach(name: str, within: float = 60.0) -> None:
    """Until a new connection works."""
    deadline = time.monotonic() + within
    while True:
        try:
            with connected() as sock:
                exchange(sock)
            return
        except OSError:
            assert time.monotonic() < deadline, name
            time.sleep(0.02)


def synced(process: subprocess.Popen[str], address: str) -> None:
    """Until the kernel holds an address that only the newest state has."""
    deadline = time.monotonic() + 60
    while True:
        rules = "".join(
            subprocess.run(command, capture_output=True, text=True).stdout
            for command in (["nft", "list", "ruleset"], ["iptables-save"])
        )
        if address in rules:
            return
        assert process.poll() is None and time.monotonic() < deadline, rules
        time.sleep(0.05)


@pytest.mark.parametrize("mode", ["iptables", "nftables"])
def test_no_connection_is_lost_by_syncs_restarts_and_sigkill(api: Api, tmp_path: Path, mode: str) -> None:
    servers = [Echo(address) for address in BACKENDS]
    flags = ("--proxy-mode", mode, "--metrics-bind-address", "")
    api.lists["services"] = [service()]
    api.lists["nodes"] = [node("192.0.2.1", version="3")]
    api.lists["endpointslices"] = [endpoints(BACKENDS[0], version="2")]
    write_kubeconfig(api, tmp_path)
    process = start(api, tmp_path, *flags)
    held: list[socket.socket] = []
    newcomers = None
    try:
        reach("the first")
        held = [connected() for _ in range(HELD)]
        before = resent()
        newcomers = Newcomers()
        for version in range(3, 13):
            # The Service's own endpoints, and another Service's beside it.
            now = BACKENDS if version % 2 else BACKENDS[:1]
            body = endpoints(*now, f"10.244.0.{version}", version=str(version))
            body["endpoints"][-1]["conditions"] = {"ready": False}
            api.send("endpointslices", "MODIFIED", body)
            other = endpoints(f"10.244.1.{version}", version=str(version))
            other["metadata"].update(name="other-1", uid="3", labels={"kubernetes.io/service-name": "other"})
            extra = service(str(version))
            extra["metadata"].update(name="other", uid="4")
            extra["spec"]["clusterIP"] = "10.96.0.10"
            first = version == 3
            api.send("services", "ADDED" if first else "MODIFIED", extra)
            api.send("endpointslices", "ADDED" if first else "MODIFIED", other)
            synced(process, f"10.244.1.{version}")
        for how in (signal.SIGKILL, signal.SIGTERM):
            process.send_signal(how)
            process.communicate(timeout=60)
            for sock in held[:: max(1, HELD // 100)]:
                exchange(sock)
            last = f"10.244.2.{int(how)}"
            again = endpoints(last, version="20")
            again["metadata"].update(name="other-1", uid="3", labels={"kubernetes.io/service-name": "other"})
            extra = service("20")
            extra["metadata"].update(name="other", uid="4")
            extra["spec"]["clusterIP"] = "10.96.0.10"
            api.close()
            api.__init__()  # type: ignore[misc]
            api.lists["services"] = [service(), extra]
            api.lists["nodes"] = [node("192.0.2.1", version="3")]
            api.lists["endpointslices"] = [endpoints(*BACKENDS, version="20"), again]
            write_kubeconfig(api, tmp_path)
            process = start(api, tmp_path, *flags)
            synced(process, last)
        newcomers.close()
        assert newcomers.failures == []
        assert newcomers.made > 10
        assert resent() == before
        for sock in held:
            exchange(sock)
    finally:
        if newcomers is not None:
            newcomers.close()
        for sock in held:
            sock.close()
        process.kill()
        process.communicate()
        for server in servers:
            server.close()
