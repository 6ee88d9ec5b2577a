"""Affinity between pods and even spreading over fake nodes, and pods that wait until it can be met."""

from __future__ import annotations

from typing import Any

import pytest
from control_plane import Cluster, FakeNode, deployment

from kubeclient.errors import Invalid
from kubeclient.resources import DEPLOYMENTS, NODES, PODS

pytestmark = pytest.mark.e2e

Object = dict[str, Any]
HOST = "kubernetes.io/hostname"


@pytest.fixture(autouse=True)
def hostnames(cluster: Cluster) -> None:
    for node in cluster.nodes:
        cluster.client.patch(NODES, node.name, {"metadata": {"labels": {HOST: node.name}}})


def near(side: str, app: str, key: str = HOST) -> Object:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}}
    return {side: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def create(cluster: Cluster, namespace: str, name: str, replicas: int, **pod_spec: Any) -> None:
    body = deployment(name, replicas, "one")
    body["spec"]["template"]["spec"] |= pod_spec
    cluster.client.create(DEPLOYMENTS, body, namespace)


def nodes_of(cluster: Cluster, namespace: str, app: str) -> list[str]:
    """Where its pods are, "" for those that wait."""
    return sorted(pod["spec"].get("nodeName", "") for pod in cluster.pods(namespace, f"app={app}"))


def test_pods_that_want_a_node_each_wait_for_another_node(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, "web", 3, affinity=near("podAntiAffinity", "web"))

    def message() -> str:
        for pod in cluster.pods(namespace):
            for condition in pod["status"].get("conditions") or ():
                if condition["type"] == "PodScheduled" and condition["status"] == "False":
                    return str(condition["message"])
        return ""

    cluster.until("one waits", message)
    assert message() == (
        "0/2 nodes are available: 2 node(s) didn't match pod anti-affinity rules. preemption: 0/2 nodes are "
        "available: 2 No preemption victims found for incoming pod."
    )
    assert nodes_of(cluster, namespace, "web") == ["", "n1", "n2"]
    late = FakeNode(cluster.client, "n3")
    try:
        cluster.client.patch(NODES, "n3", {"metadata": {"labels": {HOST: "n3"}}})
        cluster.until("it has a node", lambda: nodes_of(cluster, namespace, "web") == ["n1", "n2", "n3"])
    finally:
        late.stop()
        cluster.client.delete(NODES, "n3")


def test_a_pod_waits_for_the_one_it_wants_to_be_near(cluster: Cluster, namespace: str) -> None:
    create(cluster, namespace, "cache", 2, affinity=near("podAffinity", "web"))

    def refused() -> bool:
        conditions = [c for pod in cluster.pods(namespace) for c in pod["status"].get("conditions") or ()]
        return sum("didn't match pod affinity rules" in (c.get("message") or "") for c in conditions) == 2

    cluster.until("both wait", refused)
    web = {"metadata": {"name": "web", "labels": {"app": "web"}}, "spec": {"nodeName": "n2"}}
    web["spec"]["containers"] = [{"name": "c", "image": "one"}]
    cluster.client.create(PODS, web, namespace)
    cluster.until("both are there", lambda: nodes_of(cluster, namespace, "cache") == ["n2", "n2"])


def test_what_cannot_be_read_is_refused_and_the_scheduler_goes_on(cluster: Cluster, namespace: str) -> None:
    odd = near("podAffinity", "web")
    odd["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["labelSelector"] = {
        "matchExpressions": [{"key": "app", "operator": "Likes"}]
    }
    with pytest.raises(Invalid, match="not a valid selector operator"):
        create(cluster, namespace, "odd", 1, affinity=odd)
    create(cluster, namespace, "plain", 1)
    cluster.until("others have a node", lambda: "" not in (nodes_of(cluster, namespace, "plain") or [""]))


def test_a_deployment_is_spread_evenly(cluster: Cluster, namespace: str) -> None:
    selector = {"matchLabels": {"app": "even"}}
    constraint = {"topologyKey": HOST, "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
    constraints = [{**constraint, "labelSelector": selector}]
    create(cluster, namespace, "even", 4, topologySpreadConstraints=constraints)
    cluster.until("two each", lambda: nodes_of(cluster, namespace, "even") == ["n1", "n1", "n2", "n2"])


def test_a_pod_that_shrinks_in_place_makes_room(cluster: Cluster, namespace: str) -> None:
    def make(name: str, cpu: str) -> None:
        container = {"name": "c", "image": "one", "resources": {"requests": {"cpu": cpu}}}
        body = {"metadata": {"name": name}, "spec": {"containers": [container]}}
        cluster.client.create(PODS, body, namespace)

    def found(name: str) -> Object:
        return cluster.client.get(PODS, name, namespace)

    for name in ("wide-0", "wide-1"):
        make(name, "4")
        cluster.until("it runs", lambda name=name: found(name)["status"]["phase"] == "Running")
    make("late", "3")

    def refused() -> bool:
        conditions = found("late")["status"].get("conditions") or ()
        return any(c["type"] == "PodScheduled" and c["status"] == "False" for c in conditions)

    cluster.until("there is no room for the third", refused)
    smaller = {"spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]}}
    cluster.client.patch(PODS, "wide-0", smaller, namespace, subresource="resize")
    cluster.until("now there is", lambda: found("late")["spec"].get("nodeName"))
    assert found("late")["spec"]["nodeName"] == found("wide-0")["spec"]["nodeName"]
