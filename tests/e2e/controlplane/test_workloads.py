"""What the controllers make of Deployments, ReplicaSets, nodes and namespaces, on the real API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import Cluster, FakeNode, image, template

from kubeclient.errors import NotFound
from kubeclient.resources import (
    CLUSTER_ROLES,
    CONFIG_MAPS,
    DEPLOYMENTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    RESOURCE_QUOTAS,
)

pytestmark = pytest.mark.e2e


@pytest.fixture
def holding(cluster: Cluster) -> Iterator[list[FakeNode]]:
    """Nodes whose pods do not end until they are released."""
    for node in cluster.nodes:
        node.hold_endings = True
    yield cluster.nodes
    for node in cluster.nodes:
        node.release_endings()


@pytest.fixture
def stuck(cluster: Cluster) -> Iterator[str]:
    """The image whose pods never become Ready."""
    for node in cluster.nodes:
        node.ready = lambda pod: pod["spec"]["containers"][0]["image"] != "stuck"
    yield "stuck"
    for node in cluster.nodes:
        node.ready = lambda pod: True


def sizes(cluster: Cluster, namespace: str) -> list[int]:
    """Wanted replicas of each ReplicaSet, oldest revision first."""
    return [s["spec"]["replicas"] for s in cluster.sets(namespace)]


def test_a_rolling_update_replaces_every_pod(cluster: Cluster, namespace: str) -> None:
    cluster.deploy(namespace, "web", 4)
    cluster.wait_complete(namespace, "web")
    cluster.change(namespace, "web", image("two"))
    cluster.wait_complete(namespace, "web")
    metadata = cluster.client.get(DEPLOYMENTS, "web", namespace)["metadata"]
    assert metadata["annotations"]["deployment.kubernetes.io/revision"] == "2"
    assert metadata["generation"] == 2, "only what people change counts"
    cluster.until("old pods gone", lambda: len(cluster.pods(namespace)) == 4)
    assert {p["spec"]["containers"][0]["image"] for p in cluster.pods(namespace)} == {"two"}
    assert sizes(cluster, namespace) == [0, 4]


def test_recreate_starts_nothing_new_before_the_last_old_pod_is_gone(
    cluster: Cluster, namespace: str, holding: list[FakeNode]
) -> None:
    cluster.deploy(namespace, "web", 3, strategy={"type": "Recreate"})
    cluster.wait_complete(namespace, "web")
    cluster.change(namespace, "web", image("two"))
    cluster.until(
        "old pods ending",
        lambda: all(p["metadata"].get("deletionTimestamp") for p in cluster.pods(namespace)),
    )
    cluster.change(namespace, "web", {"revisionHistoryLimit": 5})  # whoever has seen this has seen them end
    cluster.until("seen", lambda: _observed(cluster.client.get(DEPLOYMENTS, "web", namespace)))
    assert {p["spec"]["containers"][0]["image"] for p in cluster.pods(namespace)} == {"one"}
    for node in holding:
        node.release_endings()
    cluster.wait_complete(namespace, "web")
    assert {p["spec"]["containers"][0]["image"] for p in cluster.pods(namespace)} == {"two"}


def test_a_paused_deployment_scales_but_does_not_roll_out(cluster: Cluster, namespace: str) -> None:
    cluster.deploy(namespace, "web", 2)
    cluster.wait_complete(namespace, "web")
    cluster.change(namespace, "web", {"paused": True, **image("two")})
    cluster.change(namespace, "web", {"replicas": 3})
    cluster.until("scaled", lambda: sizes(cluster, namespace) == [3])
    found = cluster.until("said so", lambda: _progressing(cluster, namespace, "DeploymentPaused"))
    assert found["status"] == "Unknown"
    cluster.change(namespace, "web", {"paused": False})
    cluster.wait_complete(namespace, "web")
    assert sizes(cluster, namespace) == [0, 3]


def _progressing(cluster: Cluster, namespace: str, reason: str) -> dict[str, str] | None:
    conditions = cluster.client.get(DEPLOYMENTS, "web", namespace)["status"]["conditions"]
    found = (c for c in conditions if c["type"] == "Progressing" and c["reason"] == reason)
    return next(found, None)


def test_scaling_in_the_middle_of_a_rollout_shares_the_new_replicas_out(
    cluster: Cluster, namespace: str, stuck: str
) -> None:
    rolling = {"rollingUpdate": {"maxSurge": 3, "maxUnavailable": 2}}
    cluster.deploy(namespace, "web", 10, strategy=rolling)
    cluster.wait_complete(namespace, "web")
    cluster.change(namespace, "web", image(stuck))
    cluster.until("stuck in the middle", lambda: sizes(cluster, namespace) == [8, 5])
    cluster.change(namespace, "web", {"replicas": 20})
    # Upstream's example: 23 pods in all, 8/13 and 5/13 of them.
    cluster.until("scaled in proportion", lambda: sizes(cluster, namespace) == [14, 9])


def test_orphaned_pods_live_on_and_a_new_deployment_adopts_them(cluster: Cluster, namespace: str) -> None:
    cluster.deploy(namespace, "web", 2)
    cluster.wait_complete(namespace, "web")
    before = {p["metadata"]["uid"] for p in cluster.pods(namespace)}
    cluster.client.delete(DEPLOYMENTS, "web", namespace, propagation_policy="Orphan")
    cluster.until("the deployment gone", lambda: _gone(cluster, DEPLOYMENTS, "web", namespace))
    left = cluster.until(
        "the set without owner",
        lambda: [s for s in cluster.sets(namespace) if not s["metadata"].get("ownerReferences")],
    )
    assert len(left) == 1
    cluster.deploy(namespace, "web", 2)
    cluster.wait_complete(namespace, "web")
    assert cluster.sets(namespace)[0]["metadata"]["ownerReferences"][0]["kind"] == "Deployment"
    assert {p["metadata"]["uid"] for p in cluster.pods(namespace)} == before


def _gone(cluster: Cluster, resource: object, name: str, namespace: str | None = None) -> bool:
    try:
        cluster.client.get(resource, name, namespace)  # type: ignore[arg-type]
    except NotFound:
        return True
    return False


def test_a_replica_set_adopts_what_matches_and_lets_go_of_what_does_not(
    cluster: Cluster, namespace: str
) -> None:
    labels = {"app": "a"}
    orphan = {"metadata": {"name": "orphan", "labels": labels}, **_spec(labels)}
    cluster.client.create(PODS, orphan, namespace)
    spec = {"replicas": 2, "selector": {"matchLabels": labels}, "template": template(labels, "one")}
    cluster.client.create(REPLICA_SETS, {"metadata": {"name": "set"}, "spec": spec}, namespace)
    cluster.until("two pods", lambda: len(cluster.pods(namespace)) == 2)
    cluster.until("adopted", lambda: _owners(cluster, "orphan", namespace) == ["set"])
    cluster.client.patch(PODS, "orphan", {"metadata": {"labels": {"app": "b"}}}, namespace)
    cluster.until("let go", lambda: _owners(cluster, "orphan", namespace) == [])
    cluster.until("replaced", lambda: len(cluster.pods(namespace, "app=a")) == 2)


def _spec(labels: dict[str, str]) -> dict[str, object]:
    return {"spec": template(labels, "one")["spec"]}


def _owners(cluster: Cluster, name: str, namespace: str) -> list[str]:
    references = cluster.client.get(PODS, name, namespace)["metadata"].get("ownerReferences") or []
    return [reference["name"] for reference in references]


def test_a_foreground_deletion_ends_after_the_last_pod(
    cluster: Cluster, namespace: str, holding: list[FakeNode]
) -> None:
    cluster.deploy(namespace, "web", 2)
    cluster.wait_complete(namespace, "web")
    cluster.client.delete(DEPLOYMENTS, "web", namespace, propagation_policy="Foreground")
    cluster.until(
        "pods ending", lambda: all(p["metadata"].get("deletionTimestamp") for p in cluster.pods(namespace))
    )
    assert not _gone(cluster, DEPLOYMENTS, "web", namespace)
    for node in holding:
        node.release_endings()
    cluster.until("the deployment gone", lambda: _gone(cluster, DEPLOYMENTS, "web", namespace))
    assert cluster.pods(namespace) == [] and cluster.sets(namespace) == []


def test_a_namespace_goes_as_soon_as_its_last_pod(
    cluster: Cluster, namespace: str, holding: list[FakeNode]
) -> None:
    cluster.deploy(namespace, "web", 2)
    cluster.wait_complete(namespace, "web")
    cluster.client.create(CONFIG_MAPS, {"metadata": {"name": "c"}}, namespace)
    cluster.client.delete(NAMESPACES, namespace)
    cluster.until(
        "pods ending", lambda: all(p["metadata"].get("deletionTimestamp") for p in cluster.pods(namespace))
    )
    cluster.until("other kinds gone", lambda: _gone(cluster, CONFIG_MAPS, "c", namespace))
    cluster.until("it says so", lambda: "pods. has 2 resource inst" in _remaining(cluster, namespace))
    assert not _gone(cluster, NAMESPACES, namespace)
    for node in holding:
        node.release_endings()
    cluster.until("the namespace gone", lambda: _gone(cluster, NAMESPACES, namespace))


def _remaining(cluster: Cluster, namespace: str) -> str:
    conditions = cluster.client.get(NAMESPACES, namespace)["status"].get("conditions") or []
    return "".join(one["message"] for one in conditions if one["type"] == "NamespaceContentRemaining")


def test_pods_leave_a_tainted_node_when_their_toleration_is_over(cluster: Cluster, namespace: str) -> None:
    node = FakeNode(cluster.client, "tainted")
    try:
        taint, exists = {"key": "k", "effect": "NoExecute"}, {"key": "k", "operator": "Exists"}
        for name, tolerations in {
            "leaves-at-once": [],
            "stays-a-second": [exists | {"effect": "NoExecute", "tolerationSeconds": 1}],
            "stays": [exists],
        }.items():
            spec = _spec({})["spec"] | {"nodeName": "tainted", "tolerations": tolerations}  # type: ignore[operator]
            cluster.client.create(PODS, {"metadata": {"name": name}, "spec": spec}, namespace)
        cluster.until(
            "all running", lambda: all(p["status"]["phase"] == "Running" for p in cluster.pods(namespace))
        )
        before = time.monotonic()
        cluster.client.patch(NODES, "tainted", {"spec": {"taints": [taint]}})
        cluster.until("one left", lambda: _gone(cluster, PODS, "leaves-at-once", namespace))
        cluster.until("the second left", lambda: _gone(cluster, PODS, "stays-a-second", namespace))
        assert time.monotonic() - before > 0.9
        assert [p["metadata"]["name"] for p in cluster.pods(namespace)] == ["stays"]
        cluster.client.delete(PODS, "stays", namespace, grace_period_seconds=0)
    finally:
        node.stop()
        cluster.client.delete(NODES, "tainted")


def test_every_node_gets_a_range_of_its_own_by_one_patch(cluster: Cluster) -> None:
    nodes = [FakeNode(cluster.client, f"ranged-{number}") for number in range(4)]
    try:
        found = cluster.until("ranges given", lambda: _ranges(cluster))
        assert len(set(found)) == len(found)
        # The controller tells after the patch was answered, so its log may be a moment behind.
        log = cluster.process.folder / "log"
        told = lambda name: log.read_text().count(f"Gave pod range node={name} ")  # noqa: E731
        cluster.until("all told", lambda: all(told(node.name) for node in nodes))
        assert [told(node.name) for node in nodes] == [1] * len(nodes)
    finally:
        for node in nodes:
            node.stop()
            cluster.client.delete(NODES, node.name)


def _observed(found: dict[str, Any]) -> bool:
    return bool(found["status"].get("observedGeneration") == found["metadata"]["generation"])


def _ranges(cluster: Cluster) -> list[str] | None:
    specs = [node["spec"] for node in cluster.client.list(NODES)["items"]]
    return [spec["podCIDR"] for spec in specs] if all(spec.get("podCIDR") for spec in specs) else None


def test_a_quota_says_how_much_of_it_is_used_and_a_set_goes_on_when_there_is_room(
    cluster: Cluster, namespace: str
) -> None:
    hard = {"pods": "2", "count/deployments.apps": "5"}
    cluster.client.create(RESOURCE_QUOTAS, {"metadata": {"name": "q"}, "spec": {"hard": hard}}, namespace)
    cluster.deploy(namespace, "web", 3)

    def used() -> dict[str, str]:
        status = cluster.client.get(RESOURCE_QUOTAS, "q", namespace).get("status") or {}
        return dict(status.get("used") or {})

    cluster.until("counted", lambda: used() == {"pods": "2", "count/deployments.apps": "1"})
    condition = cluster.until("refused", lambda: cluster.sets(namespace)[0]["status"].get("conditions"))[0]
    assert condition["type"] == "ReplicaFailure" and "exceeded quota: q" in condition["message"]
    cluster.client.patch(RESOURCE_QUOTAS, "q", {"spec": {"hard": {"pods": "3"}}}, namespace)
    cluster.wait_complete(namespace, "web")
    cluster.until("counted again", lambda: used()["pods"] == "3")


def test_a_labelled_role_is_part_of_what_tenants_may_until_it_goes(cluster: Cluster) -> None:
    rule = {"apiGroups": ["stable.example"], "resources": ["crontabs"], "verbs": ["get"]}
    label = {"rbac.authorization.k8s.io/aggregate-to-view": "true"}
    role = {"metadata": {"name": "crontabs-view", "labels": label}, "rules": [rule]}

    def holders() -> set[str]:
        roles = (cluster.client.get(CLUSTER_ROLES, name) for name in ("view", "edit", "admin"))
        return {each["metadata"]["name"] for each in roles if rule in each["rules"]}

    cluster.client.create(CLUSTER_ROLES, role)
    cluster.until("all three to have it", lambda: holders() == {"view", "edit", "admin"})
    cluster.client.delete(CLUSTER_ROLES, "crontabs-view")
    cluster.until("all three to lose it", lambda: not holders())
