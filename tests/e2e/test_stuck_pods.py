"""Pods that hang, each in another way, and the pods beside them: nothing blocks another pod's worker."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

HANGS = {"exec": {"command": ["sleep", "3600"]}}


@pytest.fixture
def silence() -> Iterator[int]:
    """The port of a registry that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


def running(node: Node, name: str) -> bool:
    statuses = node.get("pod", name)["status"].get("containerStatuses") or [{}]
    return "running" in statuses[0].get("state", {})


def test_pods_that_hang_hold_up_no_other(node: Node, silence: int) -> None:
    image = {"image": f"localhost:{silence}/never:1", "imagePullPolicy": "Always"}
    node.apply(
        pod("hook", container={"lifecycle": {"postStart": HANGS}}),
        pod("pull", container=image),
        pod("probe", container={"startupProbe": {**HANGS, "timeoutSeconds": 3600}}),
        pod("farewell", container={"lifecycle": {"preStop": HANGS}}, terminationGracePeriodSeconds=3600),
    )
    node.wait_running("farewell", "probe")
    node.kubectl("delete", "pod", "farewell", "--wait=false")
    node.until("it is ending", lambda: node.get("pod", "farewell")["metadata"].get("deletionTimestamp"))
    events = ("get", "events", "--field-selector", "involvedObject.name=pull,reason=Pulling", "-o", "name")
    node.until("the pull goes on", lambda: node.kubectl(*events).out)

    others = [f"other-{number}" for number in range(5)]
    node.apply(*(pod(name) for name in others))
    node.wait_running(*others)
    node.kubectl("delete", "pod", *others, "--timeout=60s")

    assert running(node, "farewell"), "its hook has an hour"
    assert node.phase("pull") == "Pending" and node.phase("hook") == "Pending"
    assert not node.get("pod", "probe")["status"]["containerStatuses"][0]["started"]
    # What hangs can be ended, too: a pod's own worker sees its deletion.
    node.kubectl("delete", "pod", "hook", "pull", "probe", "--timeout=60s")
    node.kubectl("delete", "pod", "farewell", "--grace-period=1", "--timeout=60s")
