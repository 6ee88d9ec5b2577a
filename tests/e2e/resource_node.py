"""Nodes with a KubeletConfiguration of their own, and what the tests about resources ask again and again."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import host_state
import pytest
from e2e_node import KUBECTLS, Node

from kubelet_py.paths import NodePaths

V1 = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def running_node(
    uplink: str,
    config: Mapping[str, Any],
    *,
    disk: str = "",
    within: Callable[[Path], contextlib.AbstractContextManager[None]] | None = None,
) -> Iterator[Node]:
    """A Ready node with this configuration; `disk`: its whole root is a tmpfs of that size. It is up only
    within `within`, of that root."""
    if not KUBECTLS:
        pytest.skip("no kubectl was found, neither Debian's 1.20 in .cache nor one on PATH")
    before = host_state.read()
    root = Path(tempfile.mkdtemp(prefix="kpy-", dir="/tmp"))
    if disk:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={disk}", "tmpfs", str(root)], check=True)
    try:
        node = Node(root, uplink)
        with within(root) if within else contextlib.nullcontext():
            node.import_busybox()
            file = root / "kubelet.json"
            file.write_text(json.dumps(config))
            node.cli("up", "--detach", "--kubelet-config", str(file))
            yield node
            if within:
                node.cli("down")
        node.cli("reset", "--yes")
        if disk:
            subprocess.run(["umount", str(root)], check=True)
        difference = host_state.settled_difference(before)
        assert not difference, f"left on the host: {difference}"
    finally:
        if disk and root.is_mount():
            subprocess.run(["umount", "--lazy", str(root)], check=True)
        shutil.rmtree(root)


def events(node: Node, name: str) -> list[str]:
    found = node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    return [f"{event['type']} {event['reason']} {event['message']}" for event in found.json()["items"]]


def wait_for_event(node: Node, name: str, start: str) -> str:
    """The first event about the object that starts with these words."""

    def look() -> str:
        return next((event for event in events(node, name) if event.startswith(start)), "")

    return str(node.until(f"event {start}", look))


def the_node(node: Node) -> Any:
    """The Node object."""
    return node.kubectl("get", "nodes", "-o", "json").json()["items"][0]


def conditions(node: Node) -> dict[str, str]:
    return {c["type"]: f"{c['status']} {c['reason']}" for c in the_node(node)["status"]["conditions"]}


def taints(node: Node) -> set[str]:
    return {f"{t['key']}:{t['effect']}" for t in the_node(node)["spec"].get("taints") or ()}


def status(node: Node, pod: str) -> Any:
    return node.get("pod", pod)["status"]


def wait_failed(node: Node, pod: str, reason: str, seconds: float = 40) -> Any:
    """Wait until the pod has failed for this reason; its status."""

    def look() -> Any:
        found = status(node, pod)
        return found if (found["phase"], found.get("reason")) == ("Failed", reason) else None

    return node.until(f"{pod} Failed {reason}", look, seconds)


def cgroup(node: Node, controller: str, path: str = "") -> Path:
    """A cgroup of the node below kubepods, in a v1 hierarchy."""
    if not (V1 / "memory").is_dir():
        pytest.skip("no v1 hierarchies at /sys/fs/cgroup to read the limits from")
    return V1 / controller / NodePaths(node.root).cgroup_root / "kubepods" / path


def number(file: Path) -> int:
    return int(file.read_text())


def asking(body: Any, **tables: Mapping[str, str]) -> Any:
    """The same pod with requests and limits in its container."""
    body["spec"]["containers"][0]["resources"] = {kind: dict(table) for kind, table in tables.items()}
    return body


def capacity_bytes() -> int:
    first = Path("/proc/meminfo").read_text().splitlines()[0]
    return int(first.split()[1]) * 1024
