"""The agent without an API server: static pods run on the real kernel, survive it, and go with their file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.cli import cleanup
from kubelet_py.paths import NodePaths
from runtime.images.store import ImageStore

pytestmark = pytest.mark.privileged

BUSYBOX = Path("/usr/bin/busybox")
SECONDS = 60.0


class Standalone:
    def __init__(self, root: Path) -> None:
        self.paths = NodePaths(root)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        command = [sys.executable, "-m", "kubelet_py.agent", "--root", str(self.paths.root)]
        command += ["--node-name", "alone", "--node-ip", "198.51.100.20", *options]
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
        for folder, _, _ in os.walk(Path("/sys/fs/cgroup/memory", self.paths.cgroup_root)):
            with contextlib.suppress(OSError):  # the container's cgroup has gone meanwhile
                pids = Path(folder, "cgroup.procs").read_text().split()
                found += [int(pid) for pid in pids if _name(int(pid)) not in ("pause", "")]
        return sorted(found)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def _moment(line: str) -> datetime:
    """When a line of the agent's log was written."""
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f")


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


def write(node: Standalone, name: str, body: Mapping[str, Any]) -> Path:
    file = node.paths.manifests / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(body))
    return file


def manifest(node: Standalone, name: str, script: str) -> Path:
    return write(node, name, pod(name, script))


def pod(name: str, script: str, *, container: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    made = {
        "name": "c",
        "image": "busybox",
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", script],
        **(container or {}),
    }
    spec = {"containers": [made], "terminationGracePeriodSeconds": 1, **more}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def output(node: Standalone, name: str) -> str:
    """What the pod's container has written so far."""
    files = sorted(node.paths.pod_logs.glob(f"default_{name}-alone_*/c/*.log"))
    lines = [line.split(" ", 3)[3] for file in files for line in file.read_text().splitlines()]
    return "\n".join(lines)


def test_a_static_pod_lives_through_its_agents_death_and_ends_with_its_file(node: Standalone) -> None:
    file = manifest(node, "web", "trap 'sleep 0.9; exit 0' TERM; sleep 1000 & wait")
    node.until(node.containers, "the pod's processes")
    node.until(lambda: "sleep" in map(_name, node.containers()), "its sleep")
    before = node.containers()
    node.end(signal.SIGKILL)
    assert node.containers() == before, "SIGKILL of the agent disturbs nobody"
    node.start()
    node.until(lambda: "state=running 1 pods" in (node.paths.root / "agent.log").read_text(), "adoption")
    assert node.containers() == before, "adopted, not restarted"
    assert node.end(signal.SIGTERM) < 5.0, "a supervisor would kill it then"
    assert node.containers() == before
    # Edited meanwhile: the new pod may want the former one's port, and starts when that is gone.
    manifest(node, "web", "trap 'exit 0' TERM; sleep 1001 & wait")
    log = node.paths.root / "agent.log"
    known = len(log.read_text())
    node.start()
    node.until(lambda: "Started container pod=web-alone" in log.read_text()[known:], "the new pod")
    lines = log.read_text()[known:].splitlines()
    removed = next(line for line in lines if "Removed pod=web-alone" in line)
    created = next(line for line in lines if "Created sandbox pod=web-alone" in line)
    begun = _moment(created) - timedelta(milliseconds=int(created.rpartition("ms=")[2]))
    assert (_moment(removed) - begun).total_seconds() < 0.5, "its end takes nearly a second"
    file.unlink()
    node.until(lambda: not node.containers(), "the end of the pod")
    node.until(lambda: not any(node.paths.pods.iterdir()), "an empty pods folder")


def test_an_agent_that_stops_gives_back_the_addresses_it_had_set_aside(node: Standalone) -> None:
    def owners() -> list[str]:
        files = node.paths.state.glob("cni/networks/*/10.*")
        return [file.read_text().partition("\r")[0] for file in files]

    manifest(node, "web", "trap 'exit 0' TERM; sleep 1000 & wait")
    node.until(node.containers, "the pod's processes")
    node.until(lambda: [owner for owner in owners() if owner.startswith("-")], "addresses set aside")
    node.end(signal.SIGTERM)
    left = owners()
    assert len(left) == 1 and not left[0].startswith("-"), "the pod's"


def test_a_crashing_static_pod_is_restarted_at_once_and_then_held_back(node: Standalone) -> None:
    manifest(node, "crash", "exit 3")
    log = node.paths.root / "agent.log"
    node.until(lambda: "reason=BackOff" in log.read_text(), "back-off")
    assert log.read_text().count("reason=Started") == 2, "the first restart is immediate"


def test_a_static_pod_uses_a_config_map_and_a_secret_that_lie_beside_it(node: Standalone) -> None:
    config: dict[str, Any] = {"kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"mode": "one"}}
    container = {
        "env": [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "key"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
    }
    script = "while :; do echo $KEY $(cat /v/mode); sleep 0.2; done"
    volumes = [{"name": "v", "configMap": {"name": "settings"}}]
    write(node, "a-pod", pod("uses", script, container=container, volumes=volumes))
    log = node.paths.root / "agent.log"
    node.until(lambda: "settings" in log.read_text(), "the pod waits for its ConfigMap")
    write(node, "settings", config)
    write(node, "keys", {"kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"key": "open"}})
    node.until(lambda: "open one" in output(node, "uses"), "both are seen")
    before = node.containers()
    write(node, "settings", {**config, "data": {"mode": "two"}})
    node.until(lambda: "open two" in output(node, "uses"), "the change in the volume")
    assert before[0] in node.containers(), "without a restart"


def test_pods_of_an_address_outlive_the_absence_of_server_and_agent(node: Standalone) -> None:
    node.end(signal.SIGTERM)
    served: dict[str, Any] = {"kind": "PodList", "items": [pod("remote", "exec sleep 1000")]}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if served else 503)
            self.end_headers()
            self.wfile.write(json.dumps(served).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    file = node.paths.root / "kubelet.json"
    url = f"http://127.0.0.1:{server.server_address[1]}/pods"
    file.write_text(json.dumps({"staticPodURL": url, "httpCheckFrequency": "200ms"}))
    try:
        node.start("--config", str(file))
        node.until(lambda: "sleep" in map(_name, node.containers()), "the pod of the address")
        before, items = node.containers(), served.pop("items")
        served.clear()
        node.end(signal.SIGKILL)
        log = node.paths.root / "agent.log"
        log.write_text("")
        node.start("--config", str(file))
        node.until(lambda: log.read_text().count("Failed to read pods from url") >= 3, "an agent that asks")
        node.until(lambda: "Looked after node" in log.read_text(), "an agent that has looked around")
        assert node.containers() == before, "nobody has said that the pod is not wanted"
        served.update(kind="PodList", items=items)
        node.until(lambda: "state=running 1 pods" in log.read_text(), "adoption")
        assert node.containers() == before
        served["items"] = []
        node.until(lambda: not node.containers(), "the end of the pod")
        node.until(lambda: not any(node.paths.pods.iterdir()), "an empty pods folder")
    finally:
        server.shutdown()
        server.server_close()


def test_static_pods_start_while_no_api_server_answers(node: Standalone) -> None:
    """It may be one of them."""
    node.end(signal.SIGTERM)
    kubeconfig = node.paths.kubeconfig("kubelet")
    kubeconfig.parent.mkdir(parents=True, exist_ok=True)
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}
    context = {"name": "x", "context": {"cluster": "c", "user": "u"}}
    kubeconfig.write_text(
        json.dumps(
            {
                "clusters": [cluster],
                "contexts": [context],
                "current-context": "x",
                "users": [{"name": "u", "user": {}}],
            }
        )
    )
    write(node, "first", pod("first", "echo up; exec sleep 1000", hostNetwork=True))
    node.start()
    node.until(lambda: "up" in output(node, "first"), "a pod without an API server")


def test_no_root_folder_is_left_with_secrets_readable(node: Standalone) -> None:
    node.until(node.paths.containers.exists, "start")
    assert os.stat(node.paths.containers).st_mode & 0o077 == 0
