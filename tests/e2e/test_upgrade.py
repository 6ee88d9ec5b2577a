"""The package is replaced under running containers, the node stopped and started as its systemd unit would.

What systemd does by that unit: starts `kubelet-py up` with NOTIFY_SOCKET, and stops it by SIGTERM to that one
process (KillMode=process). Each package is a copy of this checkout; the first is gone when the second starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_node import PATIENCE, REPOSITORY, Node, pod

from kubelet_py.cli import unit
from kubelet_py.cli.processes import ProcessIdentity, start_ticks
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

ROOMS = ("kubeclient", "runtime", "cni", "proxy", "kubelet_py", "controlplane")
COUNT = 'trap "exit 0" TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2 & wait $!; done'


def package(folder: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, folder / room)
    return folder


@contextmanager
def service(node: Node, code: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The unit's process, from this copy of the package; stopped as systemd stops it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(node.home / "notify")
        manager.bind(address)
        manager.settimeout(PATIENCE)
        extra = {"PYTHONPATH": str(code), "NOTIFY_SOCKET": address}
        argv = [sys.executable, "-m", "kubelet_py", "up", "--root", str(node.root)]
        with (node.home / "journal").open("ab") as journal:
            main = subprocess.Popen(
                argv, cwd=code, env=node.environment(extra), stdout=journal, stderr=journal
            )
        try:
            assert manager.recv(100) == b"READY=1"
            yield main
            main.send_signal(signal.SIGTERM)
            assert main.wait(PATIENCE) == 0
            assert manager.recv(100) == b"STOPPING=1"
        finally:
            main.kill()
            main.wait()
            os.unlink(address)


def modules_of(pid: int) -> Path:
    """From which package a process of ours was started."""
    return Path(os.readlink(f"/proc/{pid}/cwd"))


def processes(node: Node, name: str) -> list[tuple[int, int]]:
    """Start time and pid of pause and the container's first process, the oldest ones of the pod."""
    found = node.cli("inspect", "pod", name, "-o", "json").json()["processes"]
    started = {each["pid"]: start_ticks(each["pid"]) for each in found}
    return sorted((start, pid) for pid, start in started.items() if start is not None)[:2]


def lines(node: Node) -> int:
    [log] = (node.root / "var/log/pods").glob("default_counter_*/main/0.log")
    return len(log.read_text().splitlines())


def test_containers_outlive_their_package(unstarted_node: Node, tmp_path: Path) -> None:
    node = unstarted_node
    old, new = package(tmp_path / "old"), package(tmp_path / "new")
    with service(node, old):
        node.until("the API server", lambda: node.kubectl("get", "--raw", "/readyz", check=False).out == "ok")
        node.apply(pod("counter", COUNT), pod("fragile", "trap 'exit 3' TERM; echo up; sleep 3600 & wait"))
        node.wait_running("counter", "fragile")
        assert modules_of(node.pid("agent")) == old
        before = processes(node, "counter")
        identity = node.get("pod", "counter")["status"]["containerStatuses"][0]
        assert len(before) == 2
        agent = ProcessIdentity.of(node.pid("agent"))
    assert agent is not None and not agent.alive(), "the supervisor takes its own along"
    shutil.rmtree(old)
    seen = lines(node)
    node.until("lines while nothing but the shim is there", lambda: lines(node) > seen)
    assert [(start_ticks(pid), pid) for _, pid in before] == before
    with service(node, new):
        node.until("the API server", lambda: node.kubectl("get", "--raw", "/readyz", check=False).out == "ok")
        assert modules_of(node.pid("agent")) == new
        node.until("exec", lambda: node.kubectl("exec", "counter", "--", "true", check=False).code == 0)
        assert processes(node, "counter") == before
        assert node.get("pod", "counter")["status"]["containerStatuses"][0] == identity
        # The old shim starts its pod's next container, though its own files are gone.
        node.kubectl("exec", "fragile", "--", "kill", "1", check=False)
        node.until("a restart", lambda: restarts(node, "fragile") == (1, True))
        node.until("its log", lambda: node.kubectl("logs", "fragile", check=False).out == "up\n")
        node.apply(pod("fresh"))
        node.wait_running("fresh")
    assert [(start_ticks(pid), pid) for _, pid in before] == before


def restarts(node: Node, name: str) -> tuple[int, bool]:
    status = node.get("pod", name)["status"]["containerStatuses"][0]
    return status["restartCount"], "running" in status["state"]


def test_without_systemd_install_refuses_and_makes_nothing(unstarted_node: Node) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("this machine is run by systemd")
    before = sorted(unstarted_node.root.glob("*/kubelet-py/*"))
    done = unstarted_node.cli("install", check=False)
    assert done.code == 1 and "not run by systemd" in done.err and "kubelet-py up" in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(unstarted_node.root.glob("*/kubelet-py/*")) == before
    assert not Path("/etc/systemd/system", unit.name(NodePaths(unstarted_node.root))).exists()
