"""A node with images and layers on a disk of their own (imagefs): who is evicted when that is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from e2e_node import Node, pod
from resource_node import asking, running_node, wait_failed

from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e
MI = 1 << 20
CONFIG = {
    "evictionHard": {"imagefs.available": "50Mi"},
    "evictionPressureTransitionPeriod": "3s",
    "imageMinimumGCAge": "1us",
}
HOLD = "trap 'exit 0' TERM; sleep 3600 & wait"


@contextmanager
def image_disk(root: Path) -> Iterator[None]:
    """Before the node starts; it has to be down when the block ends."""
    paths = NodePaths(root)
    mounts = [(["-t", "tmpfs", "-o", "size=160m", "images"], paths.images)]
    mounts.append((["--bind", str(paths.images / "containers")], paths.containers))
    for arguments, folder in mounts:
        if arguments[0] == "--bind":
            Path(arguments[1]).mkdir()
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *arguments, folder], check=True)
    try:
        yield
    finally:
        for _, folder in reversed(mounts):
            subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, CONFIG, disk="300m", within=image_disk) as made:
        yield made


def test_who_fills_the_images_disk_goes_and_not_who_has_more_on_the_other(node: Node) -> None:
    fill = "dd if=/dev/zero of={} bs=1M count={}; "
    volume = pod(
        "volume",
        fill.format("/data/file", 130) + HOLD,
        volumes=[{"name": "data", "emptyDir": {}}],
        container={"volumeMounts": [{"name": "data", "mountPath": "/data"}]},
    )
    node.apply(asking(volume, requests={"ephemeral-storage": "1Mi"}))
    node.wait_running("volume")
    node.apply(asking(pod("layer", fill.format("/file", 115) + HOLD), requests={"ephemeral-storage": "1Mi"}))
    found = wait_failed(node, "layer", "Evicted")
    assert found["message"].startswith(
        "The node was low on resource: ephemeral-storage. Threshold quantity: 50Mi, available: "
    )
    assert node.phase("volume") == "Running"
