"""Nodes that fall silent, with deadlines of seconds (upstream's flags): who is tainted, evicted, spared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from control_plane import Cluster, FakeNode, Process, deployment, template

from kubeclient.resources import DEPLOYMENTS, ENDPOINT_SLICES, NODES, PODS, SERVICES

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
UNREACHABLE, OUT_OF_SERVICE = "node.kubernetes.io/unreachable", "node.kubernetes.io/out-of-service"
FLAGS = (
    "--node-monitor-grace-period=4s",
    "--node-monitor-period=1s",
    "--default-unreachable-toleration-seconds=1",
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    process = Process(tmp_path_factory.mktemp("cluster"), controllers="all", flags=FLAGS)
    process.start()
    found = Cluster(process)
    found.nodes = [FakeNode(found.client, name, beat=0.25) for name in ("n1", "n2")]
    try:
        yield found
    finally:
        for node in found.nodes:
            node.stop()
        process.kill()
        found.client.close()


def ready(cluster: Cluster, name: str) -> str:
    conditions = cluster.client.get(NODES, name)["status"]["conditions"]
    return next(str(c["status"]) for c in conditions if c["type"] == "Ready")


def effects(cluster: Cluster, name: str) -> list[str]:
    taints = cluster.client.get(NODES, name)["spec"].get("taints") or []
    return sorted(t["effect"] for t in taints if t["key"] == UNREACHABLE)


def both(cluster: Cluster) -> list[str]:
    return effects(cluster, "n1") + effects(cluster, "n2")


def on(cluster: Cluster, namespace: str, name: str) -> list[Object]:
    return [pod for pod in cluster.pods(namespace) if pod["spec"]["nodeName"] == name]


def published(cluster: Cluster, namespace: str) -> set[str]:
    """Nodes of the endpoints that are ready."""
    slices = cluster.client.list(ENDPOINT_SLICES, namespace)["items"]
    found = [endpoint for each in slices for endpoint in each.get("endpoints") or []]
    return {endpoint["nodeName"] for endpoint in found if endpoint["conditions"]["ready"]}


def test_a_silent_nodes_pods_are_replaced_and_end_when_it_is_heard_again(
    cluster: Cluster, namespace: str
) -> None:
    silent = cluster.nodes[1]
    cluster.deploy(namespace, "web", 4)
    ports = {"selector": {"app": "web"}, "ports": [{"port": 80}]}
    cluster.client.create(SERVICES, {"metadata": {"name": "web"}, "spec": ports}, namespace)
    cluster.wait_complete(namespace, "web")
    cluster.until("both nodes published", lambda: published(cluster, namespace) == {"n1", "n2"})
    silent.silent = True
    try:
        cluster.until("n2 Unknown", lambda: ready(cluster, "n2") == "Unknown")
        cluster.until("its pods left the Service", lambda: published(cluster, namespace) == {"n1"})
        cluster.until("n2 tainted", lambda: effects(cluster, "n2") == ["NoExecute", "NoSchedule"])
        cluster.wait_complete(namespace, "web")
        stuck = on(cluster, namespace, "n2")
        assert len(on(cluster, namespace, "n1")) == 4
        assert len(stuck) == 2 and all(pod["metadata"].get("deletionTimestamp") for pod in stuck)
        targets = [c for pod in stuck for c in pod["status"]["conditions"] if c["type"] == "DisruptionTarget"]
        assert [c["reason"] for c in targets] == ["DeletionByTaintManager"] * 2
    finally:
        silent.speak()
        cluster.client.delete(DEPLOYMENTS, "web", namespace)
    cluster.until("n2 untainted", lambda: not effects(cluster, "n2"))
    cluster.until("nothing left on n2", lambda: not on(cluster, namespace, "n2"))


def test_nobody_is_evicted_while_every_node_is_silent(cluster: Cluster, namespace: str) -> None:
    body = deployment("web", 2, "one")
    stay = {"key": UNREACHABLE, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
    body["spec"]["template"]["spec"]["tolerations"] = [stay]
    cluster.client.create(DEPLOYMENTS, body, namespace)
    cluster.wait_complete(namespace, "web")
    before = {pod["metadata"]["uid"] for pod in cluster.pods(namespace)}
    for node in cluster.nodes:
        node.silent = True
    try:
        for name in ("n1", "n2"):
            cluster.until(f"{name} tainted", lambda name=name: "NoSchedule" in effects(cluster, name))
        # The first of the two may have been the only silent one for a moment; no longer than that.
        cluster.until("none to be sent away", lambda: both(cluster) == ["NoSchedule"] * 2)
    finally:
        for node in cluster.nodes:
            node.speak()
    cluster.until("untainted", lambda: not both(cluster))
    assert {pod["metadata"]["uid"] for pod in cluster.pods(namespace)} == before
    cluster.client.delete(DEPLOYMENTS, "web", namespace)


def test_pods_of_a_machine_that_is_out_of_service_are_deleted_for_good(
    cluster: Cluster, namespace: str
) -> None:
    node = FakeNode(cluster.client, "off", beat=0.25)
    try:
        spec = template({}, "one")["spec"] | {"nodeName": "off"}
        cluster.client.create(PODS, {"metadata": {"name": "p"}, "spec": spec}, namespace)
        cluster.until("running", lambda: cluster.pods(namespace)[0]["status"]["phase"] == "Running")
        node.silent = True
        cluster.until("Unknown", lambda: ready(cluster, "off") == "Unknown")
        cluster.until("ending", lambda: cluster.pods(namespace)[0]["metadata"].get("deletionTimestamp"))
        taints = cluster.client.get(NODES, "off")["spec"]["taints"]
        body = {"spec": {"taints": [*taints, {"key": OUT_OF_SERVICE, "effect": "NoExecute"}]}}
        cluster.client.patch(NODES, "off", body, kind="merge")
        cluster.until("gone", lambda: not cluster.pods(namespace))
    finally:
        node.stop()
        cluster.client.delete(NODES, "off")
