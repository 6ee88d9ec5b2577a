"""Pods whose network cannot be set up, when their first container has been already: it never ran, nothing of
it is left, and the pod comes up when the fault is mended."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

REASON = "FailedCreatePodSandBox"


@pytest.fixture
def conflist(node: Node) -> Iterator[Path]:
    (file,) = (node.root / "etc/cni/net.d").glob("*.conflist")
    good = file.read_text()
    yield file
    file.write_text(good)


def failures(node: Node, name: str) -> list[datetime]:
    """When its sandbox could not be made."""
    found = node.kubectl("get", "events", "--field-selector", f"involvedObject.name={name}", "-o", "json")
    return sorted(
        datetime.fromisoformat(each["firstTimestamp"])
        for each in found.json()["items"]
        if each["reason"] == REASON
    )


def left(node: Node) -> dict[str, int]:
    """How much there is of what pods take of a node."""
    agent = node.pid("agent")
    places = {
        "sandboxes": node.root / "run/kubelet-py/sandboxes",
        "containers": node.root / "var/lib/kubelet-py/containers",
        "attachments": node.root / "var/lib/kubelet-py/cni/results",
    }
    counted = {
        name: sum(not entry.startswith(".") for entry in os.listdir(place)) for name, place in places.items()
    }
    counted["links"] = len(os.listdir("/sys/class/net"))
    counted["mounts"] = len(Path(f"/proc/{agent}/mounts").read_text().splitlines())
    counted["cgroups"] = sum(
        len(name) == 64 for _, folders, _ in os.walk("/sys/fs/cgroup") for name in folders
    )
    return counted


def remove_all(node: Node) -> None:
    node.kubectl("delete", "pod", "--all", "--force", "--grace-period=0")
    node.until("no pods left", lambda: os.listdir(node.root / "var/lib/kubelet-py/pods") == [])
    of_pods = ("sandboxes", "containers", "attachments", "cgroups")

    def settled() -> bool:
        """Links and mounts go a moment later, and the next pod's links are made in advance."""
        first = left(node)
        time.sleep(1)
        return first == left(node) and not any(first[kind] for kind in of_pods)

    node.until("nothing of pods left", settled)


def broken(conflist: Path, how: str) -> str:
    wanted: dict[str, Any] = json.loads(conflist.read_text())
    if how == "behind the bridge":
        wanted["plugins"].append({"type": "bandwidth", "shapedSubnets": ["10.0.0.0/8"]})
    else:
        only = {"rangeStart": "10.244.0.77", "rangeEnd": "10.244.0.77"}
        wanted["plugins"][0]["ipam"]["ranges"][0][0] |= only
    return json.dumps(wanted)


@pytest.mark.parametrize("how", ["behind the bridge", "no address left"])
def test_a_pod_comes_up_when_its_network_does(node: Node, conflist: Path, how: str) -> None:
    node.apply(pod("zero"))  # what a node's first pod brings for good does not count
    node.wait_running("zero")
    remove_all(node)
    good, before = conflist.read_text(), left(node)
    conflist.write_text(broken(conflist, how))
    if how == "no address left":
        node.apply(pod("last"))
        node.wait_running("last")
    names = ["one", "two"]
    node.apply(*(pod(name, "cat /etc/hosts; sleep 3600") for name in names))
    for name in names:
        node.until(f"four tries of {name}", lambda name=name: len(failures(node, name)) >= 4)
    first, *_, fourth = failures(node, "one")[:4]
    assert (fourth - first).total_seconds() >= 6, "1, 2 and 4 s lie between them; an event has whole seconds"
    conflist.write_text(good)
    node.wait_running(*names)
    for name in names:
        status = node.get("pod", name)["status"]
        assert status["containerStatuses"][0]["restartCount"] == 0
        assert f"{status['podIP']}\t{name}\n" in node.kubectl("logs", name).out
    remove_all(node)
    node.until(f"nothing is left but {before}", lambda: left(node) == before)
