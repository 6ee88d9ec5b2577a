"""StatefulSets over fake nodes: order, identity, claims, revisions."""

from __future__ import annotations

from typing import Any

import pytest
from control_plane import Cluster, Kubectl, template

from kubeclient.resources import (
    CONTROLLER_REVISIONS,
    PERSISTENT_VOLUME_CLAIMS,
    PERSISTENT_VOLUMES,
    PODS,
    STATEFUL_SETS,
)

pytestmark = pytest.mark.e2e

Object = dict[str, Any]


def create(cluster: Cluster, namespace: str, replicas: int, **spec: Any) -> None:
    labels = {"app": "db"}
    body = {"replicas": replicas, "serviceName": "db", "selector": {"matchLabels": labels}}
    body |= {"template": template(labels, "one"), **spec}
    cluster.client.create(STATEFUL_SETS, {"metadata": {"name": "db"}, "spec": body}, namespace)


def settled(cluster: Cluster, namespace: str, wanted: int) -> Object:
    def check() -> Object | None:
        found = cluster.client.get(STATEFUL_SETS, "db", namespace)
        shown, generation = found.get("status") or {}, found["metadata"]["generation"]
        words = ("replicas", "readyReplicas", "updatedReplicas", "availableReplicas")
        counts = [shown.get(word, 0) for word in words]
        done = shown.get("observedGeneration") == generation and counts == [wanted] * 4
        return shown if done and shown["currentRevision"] == shown["updateRevision"] else None

    return dict(cluster.until(f"{wanted} replicas", check))


def by_name(cluster: Cluster, namespace: str) -> dict[str, Object]:
    return {pod["metadata"]["name"]: pod for pod in cluster.pods(namespace)}


def test_pods_come_in_order_keep_their_names_and_go_from_the_top(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    claims = [
        {
            "metadata": {"name": "data"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": "manual",
                "resources": {"requests": {"storage": "1Mi"}},
            },
        }
    ]
    for number in range(3):
        spec = {
            "capacity": {"storage": "1Mi"},
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "manual",
            "hostPath": {"path": f"/tmp/{namespace}-{number}"},
            "claimRef": {"namespace": namespace, "name": f"data-db-{number}"},
        }
        cluster.client.create(
            PERSISTENT_VOLUMES, {"metadata": {"name": f"{namespace}-{number}"}, "spec": spec}
        )
    create(cluster, namespace, 3, volumeClaimTemplates=claims)
    settled(cluster, namespace, 3)
    first = by_name(cluster, namespace)
    assert sorted(first) == ["db-0", "db-1", "db-2"]
    claimed = cluster.client.list(PERSISTENT_VOLUME_CLAIMS, namespace)["items"]
    assert {claim["metadata"]["name"] for claim in claimed} == {"data-db-0", "data-db-1", "data-db-2"}
    cluster.client.delete(PODS, "db-1", namespace)
    old = ("", first["db-1"]["metadata"]["uid"])
    cluster.until("db-1 made again", lambda: _uid(cluster, namespace, "db-1") not in old)
    settled(cluster, namespace, 3)
    assert _uid(cluster, namespace, "db-0") == first["db-0"]["metadata"]["uid"]
    assert kubectl("scale", "sts", "db", "--replicas=1", "-n", namespace).returncode == 0
    settled(cluster, namespace, 1)
    assert sorted(by_name(cluster, namespace)) == ["db-0"]
    assert len(cluster.client.list(PERSISTENT_VOLUME_CLAIMS, namespace)["items"]) == 3, (
        "they outlive the pods"
    )


def test_an_ending_pod_is_not_made_again_until_it_is_gone(cluster: Cluster, namespace: str) -> None:
    """Its node may run it still: what looks like one pod in the API is one pod in the world."""
    create(cluster, namespace, 2)
    settled(cluster, namespace, 2)
    before = _uid(cluster, namespace, "db-0")
    for node in cluster.nodes:
        node.hold_endings = True
    cluster.client.delete(PODS, "db-0", namespace)
    change = {"spec": {"replicas": 3}}
    generation = cluster.client.patch(STATEFUL_SETS, "db", change, namespace)["metadata"]["generation"]

    def seen() -> bool:
        shown = cluster.client.get(STATEFUL_SETS, "db", namespace)["status"]
        return bool(shown.get("observedGeneration") == generation)

    cluster.until("the controller looked", seen)
    assert {n: p["metadata"]["uid"] for n, p in by_name(cluster, namespace).items()}["db-0"] == before
    assert "db-2" not in by_name(cluster, namespace), "nor does it go on while one is missing"
    for node in cluster.nodes:
        node.release_endings()
    settled(cluster, namespace, 3)
    assert _uid(cluster, namespace, "db-0") != before


def test_a_new_template_rolls_from_the_top_and_can_be_undone(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    create(cluster, namespace, 3)
    first = settled(cluster, namespace, 3)["updateRevision"]
    change = {"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "two"}]}}}}
    cluster.client.patch(STATEFUL_SETS, "db", change, namespace)
    done = kubectl("rollout", "status", "sts/db", "-n", namespace, "--timeout=40s")
    assert done.returncode == 0, done.stderr
    second = settled(cluster, namespace, 3)["updateRevision"]
    assert second != first
    images = {p["spec"]["containers"][0]["image"] for p in cluster.pods(namespace)}
    assert images == {"two"}
    assert kubectl("rollout", "undo", "sts/db", "-n", namespace).returncode == 0
    cluster.until("the first again", lambda: settled(cluster, namespace, 3)["updateRevision"] == first)
    revisions = cluster.client.list(CONTROLLER_REVISIONS, namespace)["items"]
    assert sorted(r["revision"] for r in revisions) == [2, 3], "brought forward, not made anew"


def _uid(cluster: Cluster, namespace: str, name: str) -> str:
    found = by_name(cluster, namespace).get(name)
    return str(found["metadata"]["uid"]) if found else ""
