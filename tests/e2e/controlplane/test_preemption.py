"""A pod of higher priority takes the room of lower ones, over fake nodes of 4 CPUs."""

from __future__ import annotations

from typing import Any

import pytest
from control_plane import Cluster

from kubeclient.resources import EVENTS, PODS, PRIORITY_CLASSES

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


def create(cluster: Cluster, namespace: str, name: str, cpu: str, priority: str = "", **spec: Any) -> None:
    container = {"name": "c", "image": "one", "resources": {"requests": {"cpu": cpu}}}
    body = {"containers": [container], **spec}
    if priority:
        body["priorityClassName"] = priority
    cluster.client.create(PODS, {"metadata": {"name": name}, "spec": body}, namespace)


def by_name(cluster: Cluster, namespace: str) -> dict[str, Object]:
    return {pod["metadata"]["name"]: pod for pod in cluster.pods(namespace)}


@pytest.fixture(scope="module", autouse=True)
def classes(cluster: Cluster) -> None:
    for name, value, policy in (
        ("low", 10, "PreemptLowerPriority"),
        ("high", 1000, "PreemptLowerPriority"),
        ("polite", 1000, "Never"),
    ):
        body = {"metadata": {"name": name}, "value": value, "preemptionPolicy": policy}
        cluster.client.create(PRIORITY_CLASSES, body)


def test_the_room_of_lower_ones_is_taken_and_kept_for_it(cluster: Cluster, namespace: str) -> None:
    for number in range(4):
        create(cluster, namespace, f"low-{number}", "2", "low")
    cluster.until("all run", lambda: all(p["spec"].get("nodeName") for p in cluster.pods(namespace)))
    for node in cluster.nodes:
        node.hold_endings = True
    try:
        create(cluster, namespace, "polite", "2", "polite")
        create(cluster, namespace, "high", "3", "high")
        cluster.until(
            "two are ending",
            lambda: sum(bool(p["metadata"].get("deletionTimestamp")) for p in cluster.pods(namespace)) == 2,
        )
        found = by_name(cluster, namespace)
        place = found["high"]["status"].get("nominatedNodeName")
        victims = [pod for pod in found.values() if pod["metadata"].get("deletionTimestamp")]
        assert {pod["spec"]["nodeName"] for pod in victims} == {place}
        conditions = victims[0]["status"]["conditions"]
        reason = next(c["reason"] for c in conditions if c["type"] == "DisruptionTarget")
        assert reason == "PreemptionByScheduler"
    finally:
        for node in cluster.nodes:
            node.release_endings()
    cluster.until("it runs", lambda: by_name(cluster, namespace)["high"]["spec"].get("nodeName") == place)
    assert not by_name(cluster, namespace)["polite"]["spec"].get("nodeName")

    def told() -> bool:
        events = cluster.client.list(EVENTS, namespace)["items"]
        return sum(event["reason"] == "Preempted" for event in events) == 2

    cluster.until("events tell of both", told)
