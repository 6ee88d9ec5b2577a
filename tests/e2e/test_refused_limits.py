"""A limit that the kernel refuses: the pod waits and tells why, and nothing is left of it, deleted or not."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from e2e_node import Node, pod
from resource_node import running_node, wait_for_event

from kubelet_py.paths import NodePaths

pytestmark = pytest.mark.e2e

TOO_MANY = 5_000_000  # pids.max takes up to 4194304 (PID_MAX_LIMIT), and "max"


@pytest.fixture(scope="module")
def node(uplink: str) -> Iterator[Node]:
    with running_node(uplink, {"podPidsLimit": TOO_MANY}) as made:
        yield made


def made(node: Node, uid: str) -> list[str]:
    """Cgroups of the pod, and sandboxes."""
    names = (uid, uid.replace("-", "_"))
    cgroups = [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if any(name in folder for name in names)]
    return cgroups + os.listdir(NodePaths(node.root).sandboxes)


def test_a_pod_whose_limit_is_refused_leaves_nothing(node: Node) -> None:
    node.apply(pod("crowd"))
    told = wait_for_event(node, "crowd", "Warning FailedCreatePodSandBox")
    assert "failed to create sandbox: Could not write '5000000' to" in told and told.endswith("EINVAL")
    uid = node.get("pod", "crowd")["metadata"]["uid"]
    node.until("nothing between two tries", lambda: not made(node, uid))
    node.kubectl("delete", "pod", "crowd")
    node.until("nothing afterwards", lambda: not made(node, uid))
