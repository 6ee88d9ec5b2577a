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
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from e2e_node import PATIENCE, REPOSITORY, Node, pod

from kubelet_py.cli import install, unit
from kubelet_py.cli.errors import CommandError
from kubelet_py.cli.main import build_parser
from kubelet_py.cli.processes import ProcessIdentity, start_ticks
from kubelet_py.cli.systemd import Systemd
from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

ROOMS = ("kubeclient", "runtime", "cni", "proxy", "kubelet_py", "controlplane")
COUNT = 'trap "exit 0" TERM; i=0; while :; do echo $i; i=$((i+1)); sleep 0.2 & wait $!; done'


def package(folder: Path) -> Path:
    for room in ROOMS:
        shutil.copytree(REPOSITORY / room, folder / room)
    return folder


class Service:
    """The unit's process, from a copy of the package; started and stopped as systemd does it."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._main: subprocess.Popen[bytes] | None = None

    def start(self, code: Path) -> None:
        """Returns when the process has said that it is ready."""
        node = self._node
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            address = node.home / f"notify-{len(os.listdir(node.home))}"
            manager.bind(str(address))
            manager.settimeout(PATIENCE)
            extra = {"PYTHONPATH": str(code), "NOTIFY_SOCKET": str(address)}
            argv = [sys.executable, "-m", "kubelet_py", "up", "--root", str(node.root)]
            with (node.home / "journal").open("ab") as journal:
                self._main = subprocess.Popen(
                    argv, cwd=code, env=node.environment(extra), stdout=journal, stderr=journal
                )
            assert manager.recv(100) == b"READY=1"

    def stop(self) -> None:
        if self._main is not None:
            self._main.send_signal(signal.SIGTERM)
            assert self._main.wait(PATIENCE) == 0
            self._main = None

    def systemctl(self, argv: Sequence[str]) -> tuple[int, str]:
        """What of systemctl `install` and `uninstall` use."""
        if argv[1] in ("restart", "stop", "disable"):
            self.stop()
        if argv[1] == "restart":
            self.start(REPOSITORY)
        return (0, "inactive" if self._main is None else "active") if argv[1] == "is-active" else (0, "")


@pytest.fixture
def service(unstarted_node: Node) -> Iterator[Service]:
    service = Service(unstarted_node)
    yield service
    service.stop()


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


def test_containers_outlive_their_package(unstarted_node: Node, service: Service, tmp_path: Path) -> None:
    node = unstarted_node
    old, new = package(tmp_path / "old"), package(tmp_path / "new")
    service.start(old)
    node.until("the API server", lambda: answers(node))
    node.apply(pod("counter", COUNT), pod("fragile", "trap 'exit 3' TERM; echo up; sleep 3600 & wait"))
    node.wait_running("counter", "fragile")
    assert modules_of(node.pid("agent")) == old
    before = processes(node, "counter")
    identity = node.get("pod", "counter")["status"]["containerStatuses"][0]
    assert len(before) == 2
    agent = ProcessIdentity.of(node.pid("agent"))
    service.stop()
    assert agent is not None and not agent.alive(), "the supervisor takes its own along"
    shutil.rmtree(old)
    seen = lines(node)
    node.until("lines while nothing but the shim is there", lambda: lines(node) > seen)
    assert still(before)
    service.start(new)
    node.until("the API server", lambda: answers(node))
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
    service.stop()
    assert still(before)


def answers(node: Node) -> bool:
    return node.kubectl("get", "--raw", "/readyz", check=False).out == "ok"


def still(before: list[tuple[int, int]]) -> bool:
    """Whether these very processes run."""
    return [(start_ticks(pid), pid) for _, pid in before] == before


def restarts(node: Node, name: str) -> tuple[int, bool]:
    status = node.get("pod", name)["status"]["containerStatuses"][0]
    return status["restartCount"], "running" in status["state"]


def test_a_running_node_is_taken_over_installed_and_uninstalled(
    unstarted_node: Node, service: Service, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a systemctl of ours; tests/vm/hosts has the real one."""
    node, name = unstarted_node, unit.name(NodePaths(unstarted_node.root))
    booted, units = tmp_path / "booted", tmp_path / "units"
    booted.mkdir()
    systemd = Systemd(units=units, booted=booted, run=service.systemctl)
    node.cli("up", "--detach")
    node.apply(pod("kept"))
    node.wait_running("kept")
    before, supervisor = processes(node, "kept"), node.pid("supervisor")

    def run(*argv: str) -> int:
        args = build_parser(argv[0]).parse_args([*argv, "--root", str(node.root)])
        return int(args.handler(args, systemd))

    refusing = Systemd(units=units, booted=booted, run=lambda argv: (int(argv[1] == "restart"), "inactive"))
    with pytest.raises(CommandError, match="Could not restart"):
        install.run_install(build_parser("install").parse_args(["install", f"--root={node.root}"]), refusing)
    assert not (units / name).exists(), "what could not be started is not left behind"
    assert run("install") == 0
    said = capsys.readouterr().out
    assert f"Installed {name}, enabled at boot" in said and "is Ready after" in said
    assert (units / name).exists() and node.pid("supervisor") != supervisor
    assert still(before) and processes(node, "kept") == before
    assert run("uninstall", "--keep-state") == 0
    assert not (units / name).exists() and not any(still([each]) for each in before)
    assert (node.root / "var/lib/kubelet-py/store").exists()


def test_without_systemd_install_refuses_and_makes_nothing(unstarted_node: Node) -> None:
    if Path("/run/systemd/system").exists():
        pytest.skip("this machine is run by systemd")
    before = sorted(unstarted_node.root.glob("*/kubelet-py/*"))
    done = unstarted_node.cli("install", check=False)
    assert done.code == 1 and "not run by systemd" in done.err and "kubelet-py up" in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(unstarted_node.root.glob("*/kubelet-py/*")) == before
    assert not Path("/etc/systemd/system", unit.name(NodePaths(unstarted_node.root))).exists()
