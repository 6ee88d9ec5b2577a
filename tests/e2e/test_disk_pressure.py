"""A node whose disk is a small tmpfs: its own things go first, then a pod, and then it takes pods again.

Space is a hard threshold here, the number of files a soft one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

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
INODES, SOFT_INODES, SOFT_SECONDS, LONGEST_GRACE = 20_000, 8_000, 3, 4
HOLD = "trap 'exit 0' TERM; sleep 3600 & wait"
CONFIG = {
    "evictionHard": {"nodefs.available": "60Mi"},
    "evictionSoft": {"nodefs.inodesFree": str(SOFT_INODES)},
    "evictionSoftGracePeriod": {"nodefs.inodesFree": f"{SOFT_SECONDS}s"},
    "evictionMaxPodGracePeriod": LONGEST_GRACE,
    "evictionMinimumReclaim": {"nodefs.available": "10Mi"},
    "evictionPressureTransitionPeriod": "3s",
    "imageMinimumGCAge": "1us",
}


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, CONFIG, disk=f"220m,nr_inodes={INODES}") as made:
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


def moment(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()


def condition(status: Any, kind: str) -> Any:
    return next(c for c in status["conditions"] if c["type"] == kind)


def test_a_soft_threshold_waits_gives_the_pod_its_grace_and_takes_nobody_else(node: Node) -> None:
    """Seen to take `after` as well while the files of the first were still being removed."""
    script = f"i=0; while [ $i -lt {INODES - SOFT_INODES} ]; do : > /f$i; i=$((i+1)); done; echo made; "
    node.apply(
        pod("many", script + "trap '' TERM; while :; do sleep 1; done", terminationGracePeriodSeconds=60)
    )
    node.until("pressure", lambda: conditions(node)["DiskPressure"] == "True KubeletHasDiskPressure")
    pressed_at = moment(condition(the_node(node)["status"], "DiskPressure")["lastTransitionTime"])
    found = wait_failed(node, "many", "Evicted")
    assert found["message"].startswith(
        "The node was low on resource: inodes. Threshold quantity: 8k, available: "
    )
    evicted_at = moment(condition(found, "DisruptionTarget")["lastTransitionTime"])
    ended = found["containerStatuses"][0]["state"]["terminated"]
    # Stamps are whole seconds.
    assert evicted_at - pressed_at >= SOFT_SECONDS - 1
    assert LONGEST_GRACE - 1 <= moment(ended["finishedAt"]) - evicted_at < 60, "not its own, nor a hard one's"
    calm = "False KubeletHasNoDiskPressure"
    node.until("no pressure", lambda: conditions(node)["DiskPressure"] == calm)
    assert [node.phase(name) for name in ("modest", "after")] == ["Running", "Running"]
    logs = node.kubectl("logs", "many", check=False)
    assert f"unable to retrieve container logs for {ended['containerID']}" in logs.err
    path = f"/api/v1/nodes/{the_node(node)['metadata']['name']}/proxy/metrics"
    counted = node.kubectl("get", "--raw", path).out.splitlines()
    assert 'kubelet_evictions{eviction_signal="nodefs.inodesFree"} 1' in counted
