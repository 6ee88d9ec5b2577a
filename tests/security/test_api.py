"""What a kubelet and a pod may do at the API server: checklist K09."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.controlplane_live.conftest import Client, Live, api, live, namespace, pod

__all__ = ["api", "live", "namespace"]

pytestmark = pytest.mark.privileged

Object = dict[str, Any]


@pytest.fixture
def cluster(api: Client, namespace: str) -> str:
    """A namespace with a pod on this kubelet's node, n1, one on another, and a Secret and a claim of each."""
    for name in ("n1", "n2"):
        if api("GET", f"/api/v1/nodes/{name}")[0] == 404:
            api.must("POST", "/api/v1/nodes", {"metadata": {"name": name}})
    here = f"/api/v1/namespaces/{namespace}"
    for name in ("n1", "n2"):
        api.must("POST", f"{here}/secrets", {"metadata": {"name": name}, "stringData": {"k": "v"}})
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        api.must("POST", f"{here}/persistentvolumeclaims", {"metadata": {"name": name}, "spec": spec})
        volumes = [
            {"name": "s", "secret": {"secretName": name}},
            {"name": "c", "persistentVolumeClaim": {"claimName": name}},
        ]
        api.must("POST", f"{here}/pods", pod(f"on-{name}", nodeName=name, volumes=volumes))
    return here


def test_K09_a_kubelet_changes_only_the_pods_of_its_node(live: Live, cluster: str) -> None:
    """K09: NodeRestriction (upstream: plugin/pkg/admission/noderestriction)."""
    status = {"status": {"phase": "Running"}}
    merge = {"Content_Type": "application/merge-patch+json"}
    assert live.kubelet("PATCH", f"{cluster}/pods/on-n1/status", status, **merge)[0] == 200
    assert live.kubelet("PATCH", f"{cluster}/pods/on-n2/status", status, **merge)[0] == 403
    assert live.kubelet("DELETE", f"{cluster}/pods/on-n2")[0] == 403
    label = {"metadata": {"labels": {"a": "b"}}}
    assert live.kubelet("PATCH", f"{cluster}/pods/on-n1", label, **merge)[0] == 403
    assert live.kubelet("POST", f"{cluster}/pods", pod("mine", nodeName="n1"))[0] == 403
    mirror = {"kubernetes.io/config.mirror": "x"}
    body = pod("mirror", nodeName="n2")
    body["metadata"]["annotations"] = mirror
    assert live.kubelet("POST", f"{cluster}/pods", body)[0] == 403


@pytest.mark.parametrize("kind", ["secrets", "persistentvolumeclaims"])
def test_K09_a_kubelet_reads_only_what_its_pods_name(live: Live, cluster: str, kind: str) -> None:
    """K09: the Node authorizer, by name, and never a whole list."""
    assert live.kubelet("GET", f"{cluster}/{kind}/n1")[0] == 200
    assert live.kubelet("GET", f"{cluster}/{kind}/n2")[0] == 403
    assert live.kubelet("GET", f"{cluster}/{kind}")[0] == 403
    assert live.kubelet("GET", f"/api/v1/{kind}")[0] == 403
    assert live.kubelet("GET", f"{cluster}/{kind}?fieldSelector=metadata.name=n1")[0] == 200
    assert live.kubelet("GET", f"{cluster}/{kind}?fieldSelector=metadata.name=n2")[0] == 403


def test_K09_a_kubelet_is_its_own_node_and_no_other(live: Live, cluster: str) -> None:
    merge = {"Content_Type": "application/merge-patch+json"}
    label = {"metadata": {"labels": {"a": "b"}}}
    assert live.kubelet("PATCH", "/api/v1/nodes/n1", label, **merge)[0] == 200
    assert live.kubelet("PATCH", "/api/v1/nodes/n2", label, **merge)[0] == 403
    assert live.kubelet("POST", "/api/v1/nodes", {"metadata": {"name": "n3"}})[0] == 403
    taint = {"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}
    assert live.kubelet("PATCH", "/api/v1/nodes/n1", taint, **merge)[0] == 403


def test_K09_a_pods_account_changes_no_pods(live: Live, cluster: str) -> None:
    """K09: the account of a pod on one node has no way to the pods of another."""
    path = f"{cluster}/serviceaccounts/default"
    live.admin("POST", f"{cluster}/serviceaccounts", {"metadata": {"name": "default"}})
    token = live.admin.must("POST", f"{path}/token", {"spec": {}})["status"]["token"]
    client = live.with_token(token)
    assert client("GET", f"{cluster}/pods/on-n2")[0] == 403
    assert client("DELETE", f"{cluster}/pods/on-n2")[0] == 403
    assert client("GET", f"{cluster}/secrets/n1")[0] == 403
    head, claims, signature = token.split(".")
    for forged in (f"{head}.{claims}.", f"{head}.{claims}.{signature[:-4]}AAAA", f"{head}.{claims}"):
        assert live.with_token(forged)("GET", f"{cluster}/pods")[0] == 401
