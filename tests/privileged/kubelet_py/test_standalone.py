"""The agent without an API server: static pods run on the real kernel, survive it, and go with their file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubelet_py.cli import cleanup
from kubelet_py.paths import NodePaths
from runtime.images.store import ImageStore

pytestmark = pytest.mark.privileged

BUSYBOX = Path("/usr/bin/busybox")
SECONDS = 15.0


class Standalone:
    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "kubelet_py.agent", "--root", str(self.paths.root)]
        command += ["--node-name", "alone", "--node-ip", "198.51.100.20"]
        with (self.paths.root / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(command, stderr=log)

    def end(self, number: int) -> float:
        assert self.process is not None
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(SECONDS)
        return time.monotonic() - began

    def until(self, condition: Callable[[], object], what: str) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"Not in time: {what}\n{(self.paths.root / 'agent.log').read_text()}")
            time.sleep(0.02)

    def containers(self) -> list[int]:
        """Pids in this node's container cgroups, without pause."""
        found = []
        for file in Path("/sys/fs/cgroup/memory", self.paths.cgroup_root).rglob("cgroup.procs"):
            found += [int(pid) for pid in file.read_text().split() if _name(int(pid)) not in ("pause", "")]
        return sorted(found)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Standalone]:
    if not BUSYBOX.exists():
        pytest.skip("no static busybox at /usr/bin/busybox")
    if not Path("/sys/fs/cgroup/memory").is_dir():
        pytest.skip("no v1 memory hierarchy to look for processes in")
    subprocess.run(["ip", "link", "add", "up1", "type", "bridge"], check=True)
    subprocess.run(["ip", "addr", "add", "198.51.100.20/24", "dev", "up1"], check=True)
    subprocess.run(["ip", "link", "set", "up1", "up"], check=True)
    made = Standalone(tmp_path)
    from runtime.images.archive import from_binary

    from_binary(ImageStore(made.paths.images), BUSYBOX, "busybox")
    made.start()
    yield made
    if made.process is not None and made.process.poll() is None:
        made.end(signal.SIGTERM)
    cleanup.down(made.paths, say=lambda text: None)
    subprocess.run(["ip", "link", "del", "up1"], check=True)


def manifest(node: Standalone, name: str, script: str) -> Path:
    file = node.paths.manifests / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    container = {
        "name": "c",
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
    }
    spec = {"containers": [container], "terminationGracePeriodSeconds": 1}
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}))
    return file


def test_a_static_pod_lives_through_its_agents_death_and_ends_with_its_file(node: Standalone) -> None:
    file = manifest(node, "web", "trap 'exit 0' TERM; sleep 1000 & wait")
    node.until(node.containers, "the pod's processes")
    node.until(lambda: "sleep" in map(_name, node.containers()), "its sleep")
    before = node.containers()
    node.end(signal.SIGKILL)
    assert node.containers() == before, "SIGKILL of the agent disturbs nobody"
    node.start()
    node.until(lambda: "state=running 1 pods" in (node.paths.root / "agent.log").read_text(), "adoption")
    assert node.containers() == before, "adopted, not restarted"
    assert node.end(signal.SIGTERM) < 2.0, "a clean stop is quick"
    assert node.containers() == before
    node.start()
    file.unlink()
    node.until(lambda: not node.containers(), "the end of the pod")
    node.until(lambda: not any(node.paths.pods.iterdir()), "an empty pods folder")


def test_a_crashing_static_pod_is_restarted_at_once_and_then_held_back(node: Standalone) -> None:
    manifest(node, "crash", "exit 3")
    log = node.paths.root / "agent.log"
    node.until(lambda: "reason=BackOff" in log.read_text(), "back-off")
    assert log.read_text().count("reason=Started") == 2, "the first restart is immediate"


def test_no_root_folder_is_left_with_secrets_readable(node: Standalone) -> None:
    node.until(node.paths.containers.exists, "start")
    assert os.stat(node.paths.containers).st_mode & 0o077 == 0
