"""A node whose disk is a small tmpfs: its own things go first, then a pod, and then it takes pods again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_node import Node, pod
from resource_node import (
    asking,
    conditions,
    running_node,
    taints,
    the_node,
    wait_failed,
    wait_for_event,
)

pytestmark = pytest.mark.e2e
MI = 1 << 20
HOLD = "trap 'exit 0' TERM; sleep 3600 & wait"
CONFIG = {
    "evictionHard": {"nodefs.available": "60Mi"},
    "evictionMinimumReclaim": {"nodefs.available": "10Mi"},
    "evictionPressureTransitionPeriod": "3s",
    "imageMinimumGCAge": "1us",
}


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, CONFIG, disk="220m") as made:
        yield made


def free(node: Node) -> int:
    disk = os.statvfs(node.root)
    return disk.f_bavail * disk.f_frsize


def writer(name: str, size: int, request: str = "1Mi") -> object:
    script = f"dd if=/dev/zero of=/file bs=1M count={size // MI}; {HOLD}"
    return asking(pod(name, script), requests={"ephemeral-storage": request})


def import_ballast(node: Node, size: int) -> None:
    """An image that nobody uses."""
    file = Path(node.root) / "ballast"
    file.write_bytes(b"\x7fELF" + os.urandom(size))
    file.chmod(0o755)
    node.cli("image", "from-binary", str(file), "--name", "ballast")
    file.unlink()


def images(node: Node) -> str:
    return node.cli("image", "ls").out


def test_unused_images_go_before_any_pod(node: Node) -> None:
    import_ballast(node, 40 * MI)
    assert "ballast" in images(node)
    node.apply(writer("writer", free(node) - 45 * MI))
    node.until("the image is gone", lambda: "ballast" not in images(node), 40)
    name = the_node(node)["metadata"]["name"]
    wait_for_event(node, name, "Warning EvictionThresholdMet Attempting to reclaim ephemeral-storage")
    node.until("no pressure", lambda: conditions(node)["DiskPressure"] == "False KubeletHasNoDiskPressure")
    assert node.phase("writer") == "Running"
    assert "busybox" in images(node), "it is in use"
    node.kubectl("delete", "pod", "writer")


def test_the_pod_that_fills_the_disk_is_evicted_and_the_node_recovers(node: Node) -> None:
    node.until("space", lambda: free(node) > 130 * MI)
    name = the_node(node)["metadata"]["name"]
    node.apply(asking(pod("modest", HOLD), requests={"ephemeral-storage": "1Mi"}))
    node.wait_running("modest")
    node.apply(writer("filler", free(node) - 30 * MI))
    taint = "node.kubernetes.io/disk-pressure:NoSchedule"
    found = wait_failed(node, "filler", "Evicted")
    assert found["message"].startswith(
        "The node was low on resource: ephemeral-storage. Threshold quantity: 60Mi, available: "
    )
    assert "Container main was using " in found["message"]
    wait_for_event(node, name, f"Normal NodeHasDiskPressure Node {name} status is now: NodeHasDiskPressure")
    assert node.phase("modest") == "Running"
    # The evicted pod's layer goes with the next reclaim: dead containers of pods that are over.
    node.until("space", lambda: free(node) > 80 * MI, 60)
    calm = "False KubeletHasNoDiskPressure"
    node.until("no pressure", lambda: conditions(node)["DiskPressure"] == calm, 40)
    node.until("no taint", lambda: taint not in taints(node))
    node.apply(pod("after", HOLD))
    node.wait_running("after")
