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


def takes_pods(cluster: Cluster, namespace: str) -> bool:
    """Whether the scheduler gives n1 a pod that can go nowhere else."""
    term = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n1"]}]}
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    spec = {"containers": [{"name": "c", "image": "i"}], "affinity": {"nodeAffinity": required}}
    cluster.client.create(PODS, {"metadata": {"name": "probe"}, "spec": spec}, namespace)

    def answer() -> str:
        pod = cluster.client.get(PODS, "probe", namespace)
        reasons = [c.get("reason") for c in pod["status"].get("conditions") or ()]
        return str(pod["spec"].get("nodeName") or ("none" if "Unschedulable" in reasons else ""))

    found = cluster.until("an answer", answer)
    cluster.client.delete(PODS, "probe", namespace)
    cluster.until("it is gone", lambda: "probe" not in names(cluster, namespace))
    return bool(found == "n1")


def names(cluster: Cluster, namespace: str) -> list[str]:
    return [str(pod["metadata"]["name"]) for pod in cluster.pods(namespace)]


def cordon(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    """Before a drain: the scheduler hears of nodes and of pods by two watches, as upstream's, and may give a
    node that it does not know to be cordoned one of the pods that were to leave it."""
    assert kubectl("cordon", "n1").returncode == 0
    cluster.until("the scheduler knows", lambda: not takes_pods(cluster, namespace))


def leave_as_found(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    """The next pods are spread evenly only where none is left, and the scheduler knows of both nodes."""
    assert kubectl("uncordon", "n1").returncode == 0
    cluster.client.delete(DEPLOYMENTS, "web", namespace)
    cluster.until("its pods are gone", lambda: not cluster.pods(namespace))
    cluster.until("the scheduler knows", lambda: takes_pods(cluster, namespace))


def test_drain_moves_the_pods_within_their_budget(cluster: Cluster, namespace: str, kubectl: Kubectl) -> None:
    cluster.deploy(namespace, "web", 4)
    cluster.wait_complete(namespace, "web")
    assert spread(cluster, namespace) == ["n1", "n1", "n2", "n2"]
    protect(cluster, namespace, least=3, allowed=1)
    try:
        cordon(cluster, namespace, kubectl)
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
