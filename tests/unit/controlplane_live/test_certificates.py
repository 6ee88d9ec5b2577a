"""CertificateSigningRequests and bootstrap tokens through the real server: who asked, who may decide."""

from __future__ import annotations

import base64
import time
from typing import Any

import pytest

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from tests.csr_maker import make_request

from .conftest import MERGE, Client, Live

REQUESTS = "/apis/certificates.k8s.io/v1/certificatesigningrequests"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
SECRETS = "/api/v1/namespaces/kube-system/secrets"
SELF = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
KUBELET = "kubernetes.io/kube-apiserver-client-kubelet"


def body(pem: bytes, signer: str = KUBELET, *usages: str, **spec: Any) -> dict[str, Any]:
    encoded = base64.b64encode(pem).decode()
    asked = list(usages or ("digital signature", "client auth"))
    spec = {"request": encoded, "signerName": signer, "usages": asked, **spec}
    return {"metadata": {"generateName": "csr-"}, "spec": spec}


def approval(kind: str) -> dict[str, Any]:
    return {"status": {"conditions": [{"type": kind, "status": "True", "reason": "Test", "message": "m"}]}}


@pytest.fixture
def pending(api: Client) -> str:
    """The path of a request that nobody has decided upon."""
    made = api.must("POST", REQUESTS, body(make_request("system:node:n9", ["system:nodes"])))
    return f"{REQUESTS}/{made['metadata']['name']}"


def test_the_server_says_who_asked_and_no_client_does(live: Live) -> None:
    pem = make_request("system:node:n1", ["system:nodes"])
    claimed = {
        "username": "kubernetes-admin",
        "groups": ["system:masters"],
        "uid": "0",
        "extra": {"a": ["b"]},
    }
    made = live.kubelet.must("POST", REQUESTS, {**body(pem, **claimed), "status": {"certificate": "eA=="}})
    spec = made["spec"]
    assert (spec["username"], spec["groups"]) == ("system:node:n1", ["system:nodes", "system:authenticated"])
    assert "uid" not in spec and "extra" not in spec
    assert made["status"] == {}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request": base64.b64encode(b"nonsense").decode()}, "spec.request"),
        ({"usages": []}, "spec.usages"),
        ({"usages": ["client auth", "client auth"]}, "spec.usages[1]"),
        ({"usages": ["world domination"]}, "spec.usages[0]"),
        ({"signerName": "mine"}, "spec.signerName"),
        ({"signerName": ""}, "spec.signerName"),
        ({"expirationSeconds": 599}, "spec.expirationSeconds"),
    ],
)
def test_a_request_that_no_signer_could_read_is_refused(
    api: Client, change: dict[str, Any], field: str
) -> None:
    code, status = api("POST", REQUESTS, body(make_request("jane"), "example.com/mine", **change))
    assert code == 422, status
    assert [cause["field"] for cause in status["details"]["causes"]] == [field]


def test_approval_is_final_and_changes_nothing_else(api: Client, pending: str) -> None:
    change = {**approval("Approved"), "spec": {"signerName": "example.com/other"}}
    change["status"]["certificate"] = "eA=="
    found = api.must("PATCH", f"{pending}/approval", change, Content_Type=MERGE)
    assert found["spec"]["signerName"] == KUBELET and "certificate" not in found["status"]
    condition = found["status"]["conditions"][0]
    assert condition["lastUpdateTime"] and condition["lastTransitionTime"] == condition["lastUpdateTime"]
    none = {"status": {"conditions": []}}
    code, status = api("PATCH", f"{pending}/approval", none, Content_Type=MERGE)
    assert code == 422 and 'may not remove a condition of type "Approved"' in status["message"]
    both = {"status": {"conditions": [condition, approval("Denied")["status"]["conditions"][0]]}}
    code, status = api("PATCH", f"{pending}/approval", both, Content_Type=MERGE)
    assert code == 422 and "mutually exclusive" in status["message"]
    # The object itself and /status cannot take it back either.
    assert api.patch(pending, none)["status"]["conditions"] == [condition]
    assert api.patch(f"{pending}/status", none)["status"]["conditions"] == [condition]


def test_a_certificate_is_set_once_through_status(api: Client, pending: str) -> None:
    api.patch(f"{pending}/approval", approval("Approved"))
    first, other = (base64.b64encode(text).decode() for text in (b"one", b"two"))
    assert "certificate" not in api.patch(pending, {"status": {"certificate": first}})["status"]
    found = api.patch(f"{pending}/status", {"status": {"certificate": first}})
    assert found["status"]["certificate"] == first
    code, status = api("PATCH", f"{pending}/status", {"status": {"certificate": other}}, Content_Type=MERGE)
    assert code == 422 and "may not modify an existing certificate" in status["message"]


def test_updating_is_not_approving_and_approving_is_not_signing(
    live: Live, namespace: str, pending: str
) -> None:
    """Admission plugins CertificateApproval and CertificateSigning."""
    api, user = live.admin, f"system:serviceaccount:{namespace}:default"
    role = {
        "metadata": {"name": f"update-{namespace}"},
        "rules": [
            {
                "apiGroups": ["certificates.k8s.io"],
                "resources": [f"certificatesigningrequests{part}" for part in ("", "/approval", "/status")],
                "verbs": ["get", "update", "patch"],
            }
        ],
    }
    path = f"{RBAC}/clusterroles"
    api.must("POST", path, role)
    reference = {
        "apiGroup": "rbac.authorization.k8s.io",
        "kind": "ClusterRole",
        "name": f"update-{namespace}",
    }
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    binding = {"metadata": {"name": f"u-{namespace}"}, "subjects": [subject], "roleRef": reference}
    api.must("POST", f"{RBAC}/clusterrolebindings", binding)
    token = api.must("POST", f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token", {"spec": {}})
    client = live.with_token(token["status"]["token"])
    code, status = client("PATCH", f"{pending}/approval", approval("Approved"), Content_Type=MERGE)
    assert (
        code == 403 and f'not permitted to approve requests with signerName "{KUBELET}"' in status["message"]
    ), user
    code, status = client(
        "PATCH", f"{pending}/status", {"status": {"certificate": "eA=="}}, Content_Type=MERGE
    )
    assert code == 403 and "not permitted to sign" in status["message"]
    signers = {
        "apiGroups": ["certificates.k8s.io"],
        "resources": ["signers"],
        "resourceNames": ["kubernetes.io/*"],
        "verbs": ["approve"],
    }
    api.must("PUT", f"{path}/update-{namespace}", {**role, "rules": [*role["rules"], signers]})
    assert client("PATCH", f"{pending}/approval", approval("Approved"), Content_Type=MERGE)[0] == 200
    assert (
        client("PATCH", f"{pending}/status", {"status": {"certificate": "eA=="}}, Content_Type=MERGE)[0]
        == 403
    )


def test_nobody_asks_for_the_masters_group(api: Client) -> None:
    """Admission plugin CertificateSubjectRestriction."""
    pem = make_request("jane", ["system:masters"])
    code, status = api("POST", REQUESTS, body(pem, "kubernetes.io/kube-apiserver-client", "client auth"))
    assert code == 403 and "system:masters group is not allowed" in status["message"]


def test_a_kubelet_asks_for_itself_only(live: Live) -> None:
    """NodeRestriction."""
    code, status = live.kubelet("POST", REQUESTS, body(make_request("system:node:n2", ["system:nodes"])))
    assert code == 403 and "can only create a node CSR with CN=system:node:n1" in status["message"]


# Bootstrap tokens


def bootstrap(live: Live, name: str, **parts: Any) -> Client:
    """A client that logs in with a new token."""
    token = BootstrapToken(name, "0123456789abcdef", **parts)
    live.admin.must("POST", SECRETS, bootstrap_tokens.to_secret(token))
    return live.with_token(token.text)


def test_a_bootstrap_token_logs_in_and_may_ask_for_a_certificate(live: Live) -> None:
    client = bootstrap(live, "good00")
    user = client.must("POST", SELF, {})["status"]["userInfo"]
    assert user["username"] == "system:bootstrap:good00"
    assert user["groups"] == [
        "system:bootstrappers",
        "system:bootstrappers:kubeadm:default-node-token",
        "system:authenticated",
    ]
    made = client.must("POST", REQUESTS, body(make_request("system:node:n5", ["system:nodes"])))
    assert made["spec"]["username"] == "system:bootstrap:good00"
    path = f"{REQUESTS}/{made['metadata']['name']}"
    assert client("GET", path)[0] == 200
    assert client("PATCH", f"{path}/approval", approval("Approved"), Content_Type=MERGE)[0] == 403
    assert client("GET", "/api/v1/nodes/n5")[0] == 404
    assert client("GET", "/api/v1/namespaces/kube-system/configmaps/kubeadm-config")[0] == 200
    for method, refused in (
        ("GET", SECRETS),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/pods"),
        ("POST", "/api/v1/nodes"),
    ):
        assert client(method, refused, {} if method == "POST" else None)[0] == 403, refused
    review = {"spec": {"token": "good00.0123456789abcdef"}}
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    assert live.admin.must("POST", path, review)["status"]["user"]["username"] == "system:bootstrap:good00"
    review["spec"]["audiences"] = ["somebody-else"]  # type: ignore[index]
    assert "authenticated" not in live.admin.must("POST", path, review)["status"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("expird", {"expires": time.time() - 1}),
        ("signng", {"usages": ("signing",)}),
    ],
)
def test_a_bootstrap_token_that_is_over_or_for_something_else_is_refused(
    live: Live, name: str, parts: dict[str, Any]
) -> None:
    assert bootstrap(live, name, **parts)("GET", "/api")[0] == 401


def test_wrong_and_deleted_bootstrap_tokens_are_refused(live: Live) -> None:
    client = bootstrap(live, "gone00")
    assert live.with_token("gone00.fedcba9876543210")("GET", "/api")[0] == 401
    assert live.with_token("nobody.0123456789abcdef")("GET", "/api")[0] == 401
    assert client("GET", "/api")[0] == 200
    live.admin.must("DELETE", f"{SECRETS}/bootstrap-token-gone00")
    assert client("GET", "/api")[0] == 401


def test_strangers_read_cluster_info_and_nothing_beside_it(live: Live) -> None:
    maps = "/api/v1/namespaces/kube-public/configmaps"
    found = live.anonymous.must("GET", f"{maps}/cluster-info")
    ca = base64.b64encode((live.folder / "pki/ca.crt").read_bytes()).decode()
    assert ca in found["data"]["kubeconfig"]
    for path in (
        maps,
        f"{maps}/kube-root-ca.crt",
        "/api/v1/namespaces/kube-system/configmaps/kubeadm-config",
    ):
        assert live.anonymous("GET", path)[0] == 403
    assert live.anonymous("PUT", f"{maps}/cluster-info", found)[0] == 403
    assert live.anonymous("GET", "/api")[0] == 403
