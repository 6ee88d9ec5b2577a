"""Out of memory, as kubectl's user sees it: the container's own end, and the kill of a child."""

from __future__ import annotations

from typing import Any

import pytest
from e2e_node import Node, pod

pytestmark = pytest.mark.e2e

LIMIT = {"resources": {"limits": {"memory": "16Mi"}}}
HOG = "tail /dev/zero"  # keeps a line without end in memory


def status(node: Node, name: str) -> dict[str, Any]:
    found: dict[str, Any] = node.get("pod", name)["status"]["containerStatuses"][0]
    return found


def oom_events(node: Node, name: str) -> list[dict[str, Any]]:
    selector = f"involvedObject.name={name},reason=OOMKilling"
    found: list[dict[str, Any]] = node.kubectl(
        "get", "events", "--field-selector", selector, "-o", "json"
    ).json()["items"]
    return found


def test_container_that_runs_out_of_memory_is_oomkilled_137_without_a_second_event(node: Node) -> None:
    node.apply(pod("hog", f"exec {HOG}", container=LIMIT, restartPolicy="Never"))
    node.until("pod hog Failed", lambda: node.phase("hog") == "Failed", 60)
    ended = status(node, "hog")["state"]["terminated"]
    assert (ended["reason"], ended["exitCode"]) == ("OOMKilled", 137)
    # What is told comes within the agent's next look at the node: a later child's kill is told after it.
    node.apply(pod("limper", f"{HOG}; echo limps on; sleep 3600", container=LIMIT))
    node.until("the child's event", lambda: oom_events(node, "limper"), 60)
    assert oom_events(node, "hog") == []


def test_killed_child_is_an_event_of_the_pod_which_goes_on(node: Node) -> None:
    node.apply(pod("worker", f"{HOG}; echo limps on; sleep 3600", container=LIMIT))
    found = node.until("an OOMKilling event", lambda: oom_events(node, "worker"), 60)
    assert [event["type"] for event in found] == ["Warning"]
    assert found[0]["involvedObject"]["fieldPath"] == "spec.containers{main}"
    assert found[0]["source"]["component"] == "kubelet"
    assert "container main" in found[0]["message"]
    node.until("it goes on", lambda: "limps on" in node.kubectl("logs", "worker").out)
    assert node.phase("worker") == "Running"
    assert status(node, "worker")["restartCount"] == 0
    assert "OOMKilling" in node.kubectl("describe", "pod", "worker").out
