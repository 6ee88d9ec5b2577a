"""The kubelet's server over the real runtime: an image of the store, a shim, a terminal."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups import detect
from runtime.images.store import ImageStore
from runtime.streams import Stream
from tests.privileged.runtime_service.harness import BUSYBOX, ROOT_CGROUP, Node, shims, wait_for
from tests.unit.server.fake_node import POD
from tests.unit.server.test_app import Node as Server

pytestmark = [
    pytest.mark.privileged,
    pytest.mark.skipif(os.geteuid() != 0, reason="containers need root"),
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@dataclass
class RuntimeBackend:
    """The agent's part, for one pod with one container."""

    node: Node
    container: str

    def pods(self) -> list[dict[str, Any]]:
        return [POD]

    def container_id(self, namespace: str, pod: str, container: str, uid: str | None = None) -> str:
        return self.container

    def log_path(self, namespace: str, pod: str, container: str, *, previous: bool) -> Path:
        return Path(self.node.service.container(self.container).config.log_path)

    def container_running(self, namespace: str, pod: str, container: str) -> bool:
        return self.node.service.container(self.container).state == "RUNNING"

    def exec(self, container_id: str, argv: Sequence[str], **flags: bool) -> Stream:
        return self.node.service.exec(container_id, argv, **flags)

    def attach(self, container_id: str, **flags: bool) -> Stream:
        return self.node.service.attach(container_id, **flags)

    def port_forward(self, namespace: str, pod: str, port: int) -> socket.socket:
        raise OSError("not in this test")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    image = ImageStore(tmp_path / "images").from_binary(BUSYBOX, "busybox")
    driver = detect()
    node = Node(tmp_path, Path(image.layers[0]), driver, None)  # type: ignore[arg-type]
    node.service = node.fresh()
    node.service.start()
    container = node.run(node.sandbox(), ["sh", "-c", "echo started; sleep 0.7; echo bye"])
    made = Server(tmp_path)
    made.server.backend = RuntimeBackend(node, container)
    yield made
    made.server.stop()
    node.service.close()
    node.fresh().remove_everything()
    if driver.exists(ROOT_CGROUP):
        driver.remove(ROOT_CGROUP, recursive=True)
    wait_for(lambda: not shims(tmp_path))


def test_exec_terminal_and_logs_reach_a_real_container(server: Server) -> None:
    path = "/exec/default/web/main?output=1&error=1&input=1"
    client = server.websocket(f"{path}&command=sh&command=-c&command=cat;exit+7", "v5.channel.k8s.io")
    client.message(b"\0hello")
    client.message(b"\xff\0")
    found = client.by_channel()
    client.close()
    assert found[1] == b"hello" and json.loads(found[3])["details"]["causes"][0]["message"] == "7"

    client = server.websocket(
        f"{path}&tty=1&command=sh&command=-c&command=stty+size;tty", "v5.channel.k8s.io"
    )
    client.message(b'\4{"Width":99,"Height":33}\n')
    found = client.by_channel()
    client.close()
    assert b"/dev/pts/" in found[1] and json.loads(found[3])["status"] == "Success"

    client = server.websocket(f"{path}&command=nosuch", "v5.channel.k8s.io")
    message = json.loads(client.by_channel()[3])["message"]
    client.close()
    assert "nosuch" in message and "not found" in message

    assert server.get("/containerLogs/default/web/main?follow=true") == (200, "started\nbye\n")
