"""`kubectl drain`: evictions that respect budgets, from clients of policy/v1beta1 and policy/v1.

kubectl 1.20 posts a policy/v1beta1 Eviction although that group version is no longer served; what counts is
the path, as upstream has it.
"""

from __future__ import annotations

import pytest
from control_plane import Cluster, Kubectl

from kubeclient.resources import DEPLOYMENTS, NODES, POD_DISRUPTION_BUDGETS, PODS

pytestmark = pytest.mark.e2e


def spread(cluster: Cluster, namespace: str) -> list[str]:
    return sorted(pod["spec"].get("nodeName", "") for pod in cluster.pods(namespace))


def protect(cluster: Cluster, namespace: str, least: int, allowed: int) -> None:
    spec = {"minAvailable": least, "selector": {"matchLabels": {"app": "web"}}}
    cluster.client.create(POD_DISRUPTION_BUDGETS, {"metadata": {"name": "web"}, "spec": spec}, namespace)

    def counted() -> bool:
        status = cluster.client.get(POD_DISRUPTION_BUDGETS, "web", namespace).get("status") or {}
        return bool(status.get("expectedPods") == 4 and status.get("disruptionsAllowed") == allowed)

    cluster.until("the budget counted", counted)


def leave_as_found(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    """The next pods are spread evenly only where none is left, and the scheduler knows of both nodes."""
    assert kubectl("uncordon", "n1").returncode == 0
    cluster.client.delete(DEPLOYMENTS, "web", namespace)
    cluster.until("its pods are gone", lambda: not cluster.pods(namespace))
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    spec = {"containers": [{"name": "c", "image": "i"}], "affinity": {"nodeAffinity": required}}
    cluster.client.create(PODS, {"metadata": {"name": "probe"}, "spec": spec}, namespace)
    cluster.until("n1 takes pods", lambda: spread(cluster, namespace) == ["n1"])
    cluster.client.delete(PODS, "probe", namespace)
    cluster.until("it is gone", lambda: not cluster.pods(namespace))


def test_drain_moves_the_pods_within_their_budget(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    cluster.deploy(namespace, "web", 4)
    cluster.wait_complete(namespace, "web")
    assert spread(cluster, namespace) == ["n1", "n1", "n2", "n2"]
    protect(cluster, namespace, least=3, allowed=1)
    try:
        done = kubectl("drain", "n1", "--timeout=40s")
        assert done.returncode == 0, done.stdout + done.stderr
        evicted = [line for line in done.stdout.splitlines() if line.startswith("pod/web-")]
        assert len(evicted) == 2 and all(line.endswith(" evicted") for line in evicted)
        cluster.wait_complete(namespace, "web")
        cluster.until("all on the other node", lambda: spread(cluster, namespace) == ["n2"] * 4)
        assert cluster.client.get(NODES, "n1")["spec"]["unschedulable"] is True
    finally:
        leave_as_found(cluster, namespace, kubectl)


def test_drain_gives_up_where_the_budget_allows_nothing(
    cluster: Cluster, namespace: str, kubectl: Kubectl
) -> None:
    cluster.deploy(namespace, "web", 4)
    cluster.wait_complete(namespace, "web")
    before = {pod["metadata"]["uid"] for pod in cluster.pods(namespace)}
    protect(cluster, namespace, least=4, allowed=0)
    try:
        done = kubectl("drain", "n1", "--timeout=2s")
        assert done.returncode == 1
        assert "Cannot evict pod as it would violate the pod's disruption budget" in done.stderr
        assert {pod["metadata"]["uid"] for pod in cluster.pods(namespace)} == before
        assert "ALLOWED DISRUPTIONS" in kubectl("get", "pdb", "-n", namespace).stdout
    finally:
        leave_as_found(cluster, namespace, kubectl)
