"""DaemonSets over fake nodes: one pod on each, updates and undoing them, nodes that come and go."""

from __future__ import annotations

from typing import Any

import pytest
from control_plane import Cluster, FakeNode, Kubectl, template

from kubeclient.resources import CONTROLLER_REVISIONS, DAEMON_SETS, NODES, PODS

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


def create(cluster: Cluster, namespace: str, **spec: Any) -> None:
    labels = {"app": "agent"}
    body = {"selector": {"matchLabels": labels}, "template": template(labels, "one"), **spec}
    cluster.client.create(DAEMON_SETS, {"metadata": {"name": "agent"}, "spec": body}, namespace)


def settled(cluster: Cluster, namespace: str, wanted: int) -> Object:
    def check() -> Object | None:
        found = cluster.client.get(DAEMON_SETS, "agent", namespace)
        shown = found.get("status") or {}
        words = ("desiredNumberScheduled", "numberAvailable", "updatedNumberScheduled")
        done = shown.get("observedGeneration") == found["metadata"]["generation"]
        return shown if done and [shown.get(word, 0) for word in words] == [wanted] * 3 else None

    return dict(cluster.until(f"{wanted} daemons", check))


def places(cluster: Cluster, namespace: str) -> list[str]:
    pods = [pod for pod in cluster.pods(namespace) if not pod["metadata"].get("deletionTimestamp")]
    return sorted(pod["spec"].get("nodeName", "") for pod in pods)


def image_of(pod: Object) -> str:
    return str(pod["spec"]["containers"][0]["image"])


def change(cluster: Cluster, namespace: str, image: str) -> None:
    body = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": image}]}}}}
    cluster.client.patch(DAEMON_SETS, "agent", body, namespace)


def test_each_node_has_one_also_those_that_come_later(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace)
    settled(cluster, namespace, 2)
    assert places(cluster, namespace) == ["n1", "n2"]
    late = FakeNode(cluster.client, "n3")
    try:
        settled(cluster, namespace, 3)
        assert places(cluster, namespace) == ["n1", "n2", "n3"]
        cluster.client.delete(PODS, cluster.pods(namespace)[0]["metadata"]["name"], namespace)
        cluster.until("the lost one is made again", lambda: len(places(cluster, namespace)) == 3)
    finally:
        late.stop()
        cluster.client.delete(NODES, "n3")
    settled(cluster, namespace, 2)


def test_labels_and_taints_choose_nodes(cluster: Cluster, namespace: str) -> None:
    labels = {"app": "agent"}
    chosen = template(labels, "one")
    chosen["spec"]["nodeSelector"] = {"disk": "ssd"}
    create(cluster, namespace, template=chosen)
    settled(cluster, namespace, 0)
    cluster.client.patch(NODES, "n2", {"metadata": {"labels": {"disk": "ssd"}}})
    settled(cluster, namespace, 1)
    assert places(cluster, namespace) == ["n2"]
    cluster.client.patch(NODES, "n2", {"metadata": {"labels": {"disk": None}}})
    settled(cluster, namespace, 0)
    cluster.until("its pod is gone", lambda: not cluster.pods(namespace))


def test_a_cordoned_node_keeps_its_daemon_and_drain_leaves_it(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    create(cluster, namespace)
    settled(cluster, namespace, 2)
    before = {pod["metadata"]["uid"] for pod in cluster.pods(namespace)}
    try:
        refused = kubectl("drain", "n1", "--timeout=5s")
        assert refused.returncode != 0
        assert "DaemonSet-managed" in refused.stderr
        drained = kubectl("drain", "n1", "--ignore-daemonsets", "--force", "--timeout=30s")
        assert drained.returncode == 0, drained.stderr
        assert {pod["metadata"]["uid"] for pod in cluster.pods(namespace)} == before
        for pod in cluster.pods(namespace):
            if pod["spec"]["nodeName"] == "n1":
                cluster.client.delete(PODS, pod["metadata"]["name"], namespace)
        cluster.until("made anew on n1, too", lambda: places(cluster, namespace) == ["n1", "n2"])
    finally:
        kubectl("uncordon", "n1")


def test_an_update_goes_node_by_node_and_can_be_undone(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    create(cluster, namespace)
    settled(cluster, namespace, 2)
    for node in cluster.nodes:
        node.ready = lambda pod: image_of(pod) != "broken"
    try:
        change(cluster, namespace, "broken")
        cluster.until(
            "one node has the new one",
            lambda: sorted(image_of(p) for p in cluster.pods(namespace)) == ["broken", "one"],
        )
        undone = kubectl("rollout", "undo", "ds/agent", "-n", namespace)
        assert undone.returncode == 0, undone.stderr
        done = kubectl("rollout", "status", "ds/agent", "-n", namespace, "--timeout=40s")
        assert done.returncode == 0, done.stderr
        settled(cluster, namespace, 2)
        assert [image_of(pod) for pod in cluster.pods(namespace)] == ["one", "one"]
        revisions = cluster.client.list(CONTROLLER_REVISIONS, namespace)["items"]
        assert sorted(revision["revision"] for revision in revisions) == [2, 3]
    finally:
        for node in cluster.nodes:
            node.ready = lambda pod: True


def test_with_a_surge_no_node_is_without(cluster: Cluster, namespace: str) -> None:
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}
    create(cluster, namespace, updateStrategy=strategy)
    settled(cluster, namespace, 2)
    for node in cluster.nodes:
        node.ready = lambda pod: image_of(pod) != "two"
    try:
        change(cluster, namespace, "two")
        cluster.until("a second pod on one node", lambda: len(cluster.pods(namespace)) == 3)
        old = [pod for pod in cluster.pods(namespace) if image_of(pod) == "one"]
        assert len([pod for pod in old if not pod["metadata"].get("deletionTimestamp")]) == 2
    finally:
        for node in cluster.nodes:
            node.ready = lambda pod: True
            node.look_again()
    settled(cluster, namespace, 2)
    cluster.until("two pods", lambda: [image_of(p) for p in cluster.pods(namespace)] == ["two", "two"])


def test_a_daemon_that_ends_is_started_again(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace)
    settled(cluster, namespace, 2)
    chosen = cluster.pods(namespace)[0]
    for node in cluster.nodes:
        node.exit_code = lambda pod: 1 if pod["metadata"]["uid"] == chosen["metadata"]["uid"] else None
        node.look_again()
    try:
        cluster.until(
            "another pod in its place",
            lambda: chosen["metadata"]["uid"] not in {p["metadata"]["uid"] for p in cluster.pods(namespace)},
        )
        settled(cluster, namespace, 2)
    finally:
        for node in cluster.nodes:
            node.exit_code = lambda pod: None
