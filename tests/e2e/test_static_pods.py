"""Static pods of a folder and of an address; a node whose API server is away for a while."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, pod
from resource_node import running_node

pytestmark = pytest.mark.e2e
SOURCE = "kubernetes.io/config.source"


class Address:
    """What the node asks: a list of pods, or nothing but errors."""

    def __init__(self) -> None:
        self.items: list[Any] | None = []
        address = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                good = address.items is not None and self.headers["X-Node"] == "mine"
                self.send_response(200 if good else 403)
                self.end_headers()
                if good:
                    self.wfile.write(json.dumps({"kind": "PodList", "items": address.items}).encode())

            def log_message(self, format: str, *arguments: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/pods"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    made = Address()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def lone_node(uplink: str, address: Address) -> Iterator[Node]:
    config = {
        "staticPodURL": address.url, "staticPodURLHeader": {"X-Node": ["mine"]},
        "httpCheckFrequency": "500ms", "fileCheckFrequency": "500ms",
    }  # fmt: skip
    with running_node(uplink, config) as node:
        yield node


def bare(name: str, command: str, **spec: Any) -> dict[str, Any]:
    made = pod(name, command, **spec)
    made["metadata"].pop("namespace")
    return made


def node_name(node: Node) -> str:
    return str(node.kubectl("get", "nodes", "-o", "jsonpath={.items[0].metadata.name}").out)


def test_both_kinds_have_mirrors_that_say_where_they_come_from(lone_node: Node, address: Address) -> None:
    node, name = lone_node, node_name(lone_node)
    address.items = [bare("remote", "exec sleep 3600")]
    manifests = node.root / "etc/kubelet-py/manifests"
    (manifests / "local.json").write_text(json.dumps(bare("local", "exec sleep 3600")))
    for pod_name, source in ((f"remote-{name}", "http"), (f"local-{name}", "file")):
        node.wait_running(pod_name)
        mirror = node.get("pod", pod_name)
        annotations = mirror["metadata"]["annotations"]
        assert annotations[SOURCE] == source
        assert annotations["kubernetes.io/config.mirror"] == annotations["kubernetes.io/config.hash"]
        assert mirror["metadata"]["ownerReferences"][0]["kind"] == "Node"
    # Deleting the mirror does not end the pod: it comes back, and the container is the same.
    before = node.get("pod", f"remote-{name}")
    node.kubectl("delete", "pod", f"remote-{name}", "--grace-period=0", "--force", "--wait=false")

    def back() -> bool:
        done = node.kubectl("get", "pod", f"remote-{name}", "-o", "json", check=False)
        found = done.json() if done.code == 0 else before
        return bool(
            found["metadata"]["uid"] != before["metadata"]["uid"] and found["status"].get("containerStatuses")
        )

    node.until("another mirror with a status", back)
    after = node.get("pod", f"remote-{name}")["status"]["containerStatuses"][0]
    assert after["containerID"] == before["status"]["containerStatuses"][0]["containerID"]


def test_an_edited_manifests_pod_starts_when_the_former_one_has_ended(
    lone_node: Node, tmp_path: Path
) -> None:
    """They may want the same port. Another manifest with the same name waits for its turn, too."""
    node, said = lone_node, tmp_path / "said"
    manifests = node.root / "etc/kubelet-py/manifests"
    volumes = [{"name": "v", "hostPath": {"path": str(tmp_path)}}]
    mounts = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}

    def write(file: str, word: str) -> None:
        end = f"sleep 2; echo {word} ends >> /v/said; exit 0"
        line = f"trap '{end}' TERM; echo {word} runs >> /v/said; while :; do sleep 0.1; done"
        body = bare("edited", line, container=mounts, volumes=volumes, terminationGracePeriodSeconds=60)
        (manifests / file).with_suffix(".new").write_text(json.dumps(body))
        (manifests / file).with_suffix(".new").rename(manifests / file)

    def heard(words: str) -> None:
        node.until(words, lambda: said.exists() and said.read_text().endswith(f"{words}\n"))

    write("edited.json", "one")
    heard("one runs")
    write("second.json", "two")
    all_pods = ("get", "--raw", f"/api/v1/nodes/{node_name(node)}/proxy/pods")

    def known() -> int:
        names = [body["metadata"]["name"] for body in node.kubectl(*all_pods).json()["items"]]
        return names.count(f"edited-{node_name(node)}")

    node.until("the agent knows both", lambda: known() == 2)
    write("edited.json", "three")
    heard("two runs")
    (manifests / "second.json").unlink()
    heard("three runs")
    (manifests / "edited.json").unlink()
    heard("three ends")
    order = ("one runs", "one ends", "two runs", "two ends", "three runs", "three ends")
    assert said.read_text().splitlines() == [*order]


def test_a_node_without_its_api_server_goes_on_and_catches_up(
    lone_node: Node, address: Address, tmp_path: Path
) -> None:
    """API server and address are silent while the agent is killed: nothing of either's pods is touched."""
    node, name = lone_node, node_name(lone_node)
    volume = {"name": "v", "hostPath": {"path": str(tmp_path)}}
    mount = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    node.apply(
        pod("stays", "exec sleep 3600"),
        pod(
            "ends", "until [ -e /v/end ]; do sleep 0.1; done; touch /v/ended", restartPolicy="Never",
            volumes=[volume], container=mount,
        ),
    )  # fmt: skip
    names = ("stays", f"remote-{name}", f"local-{name}")
    node.wait_running("ends", *names)

    def ids() -> list[str]:
        return [node.get("pod", n)["status"]["containerStatuses"][0]["containerID"] for n in names]

    before, log = ids(), node.root / "var/log/kubelet-py/agent.log"
    items, address.items = address.items, None
    control, agent = node.pid("controlplane"), node.pid("agent")
    os.kill(control, signal.SIGSTOP)
    try:
        known = len(log.read_text())
        os.kill(agent, signal.SIGKILL)

        def looked() -> bool:
            words = log.read_text()[known:]
            return "state=waiting for the API server" in words and "Failed to read pods from url" in words

        node.until("an agent that waits for both", looked, 60)
        (tmp_path / "end").touch()
        node.until("the container's end", (tmp_path / "ended").exists)
    finally:
        os.kill(control, signal.SIGCONT)
    address.items = items
    node.until("what ended meanwhile is told", lambda: node.phase("ends") == "Succeeded", 60)
    node.apply(pod("later", "exec sleep 3600"))
    node.wait_running("later")
    assert ids() == before
    address.items = []
    node.until("the remote pod's end", lambda: node.phase(f"remote-{name}") == "", 60)
    assert node.phase(f"local-{name}") == "Running"
