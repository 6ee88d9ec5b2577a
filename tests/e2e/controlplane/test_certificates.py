"""Certificate requests from being asked for to being used, decided upon by kubectl and by the controllers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_plane import Cluster, Kubectl

from controlplane import bootstrap_tokens
from controlplane.bootstrap_tokens import BootstrapToken
from kubeclient.errors import ApiError, Forbidden, NotFound
from kubeclient.kubeconfig import load
from kubeclient.resources import CERTIFICATE_SIGNING_REQUESTS as REQUESTS
from kubeclient.resources import CONFIG_MAPS, NODES, SECRETS, Resource
from kubeclient.rest import RestClient
from tests.csr_maker import make_key, make_request

pytestmark = pytest.mark.e2e

CLIENT = "kubernetes.io/kube-apiserver-client"
KUBELET_CLIENT = f"{CLIENT}-kubelet"
SERVING = "kubernetes.io/kubelet-serving"
WHO = Resource("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", False)


def post(client: RestClient, pem: bytes, signer: str, *usages: str) -> str:
    """Ask for a certificate; the request's name."""
    spec = {
        "request": base64.b64encode(pem).decode(),
        "signerName": signer,
        "usages": ["digital signature", *usages],
    }
    made = client.create(REQUESTS, {"metadata": {"generateName": "csr-"}, "spec": spec})
    return str(made["metadata"]["name"])


def issued(cluster: Cluster, name: str) -> bytes:
    def look() -> str:
        return str((cluster.client.get(REQUESTS, name).get("status") or {}).get("certificate") or "")

    return base64.b64decode(cluster.until(f"certificate of {name}", look))


def as_somebody(cluster: Cluster, **credentials: Any) -> RestClient:
    admin = load(cluster.process.folder / "admin.conf")
    return RestClient(replace(admin, **({"cert": None, "key": None} | credentials)))


@pytest.fixture
def kubelet(cluster: Cluster) -> Iterator[RestClient]:
    """Logs in as node n1, whose certificate was signed by the authority."""
    client = RestClient(load(cluster.process.folder / "kubelet.conf"))
    yield client
    client.close()


def token(cluster: Cluster, name: str, **parts: Any) -> BootstrapToken:
    made = BootstrapToken(name, "0123456789abcdef", **parts)
    cluster.client.create(SECRETS, bootstrap_tokens.to_secret(made))
    return made


def test_kubectl_approves_and_the_certificate_logs_in(cluster: Cluster, kubectl: Kubectl) -> None:
    key, key_pem = make_key()
    name = post(cluster.client, make_request("jane", ["devs"], key=key), CLIENT, "client auth")
    assert "Pending" in kubectl("get", "csr", name, "--no-headers").stdout
    assert kubectl("certificate", "approve", name).stdout.strip().endswith(f"{name} approved")
    certificate = issued(cluster, name)
    lines = kubectl("get", "csr", name).stdout.splitlines()
    assert lines[0].split()[:4] == ["NAME", "AGE", "SIGNERNAME", "REQUESTOR"]
    assert lines[1].split()[-1] == "Approved,Issued" and "kubernetes-admin" in lines[1]
    jane = as_somebody(cluster, cert=certificate, key=key_pem)
    found = jane.create(WHO, {})["status"]["userInfo"]
    assert (found["username"], found["groups"]) == ("jane", ["devs", "system:authenticated"])
    with pytest.raises(Forbidden):
        jane.list(NODES)
    jane.close()


def test_kubectl_denies_and_nothing_is_signed(cluster: Cluster, kubectl: Kubectl) -> None:
    name = post(cluster.client, make_request("jane"), CLIENT, "client auth")
    assert kubectl("certificate", "deny", name).returncode == 0
    assert kubectl("get", "csr", name, "--no-headers").stdout.split()[-1] == "Denied"
    refused = kubectl("certificate", "approve", name)
    assert refused.returncode != 0
    described = kubectl("describe", "csr", name).stdout
    assert "Denied" in described and "jane" in described


def test_an_approved_request_that_breaks_its_signers_rules_fails(cluster: Cluster, kubectl: Kubectl) -> None:
    name = post(cluster.client, make_request("jane"), KUBELET_CLIENT, "client auth")
    kubectl("certificate", "approve", name)
    cluster.until("Failed", lambda: "Failed" in kubectl("get", "csr", name, "--no-headers").stdout)
    conditions = cluster.client.get(REQUESTS, name)["status"]["conditions"]
    failed = next(item for item in conditions if item["type"] == "Failed")
    assert failed["reason"] == "SignerValidationFailure" and "system:nodes" in failed["message"]


def test_a_new_node_gets_its_certificate_by_a_bootstrap_token(cluster: Cluster) -> None:
    logged_in = as_somebody(cluster, token=token(cluster, "joins0").text)
    key, key_pem = make_key()
    pem = make_request("system:node:n7", ["system:nodes"], key=key)
    certificate = issued(cluster, post(logged_in, pem, KUBELET_CLIENT, "client auth"))
    node = as_somebody(cluster, cert=certificate, key=key_pem)
    assert node.create(WHO, {})["status"]["userInfo"]["username"] == "system:node:n7"
    # It renews as itself, and needs the token no more.
    cluster.client.delete(SECRETS, "bootstrap-token-joins0", "kube-system")
    renewed = make_request("system:node:n7", ["system:nodes"])
    name = post(node, renewed, KUBELET_CLIENT, "client auth")
    issued(cluster, name)
    condition = cluster.client.get(REQUESTS, name)["status"]["conditions"][0]
    assert (condition["type"], condition["reason"]) == ("Approved", "AutoApproved")
    with pytest.raises(ApiError, match="nauthorized"):
        logged_in.get(NODES, "n7")
    node.close()
    logged_in.close()


def test_a_token_of_another_group_may_not_even_ask(cluster: Cluster) -> None:
    other = as_somebody(cluster, token=token(cluster, "other0", groups=("system:bootstrappers:others",)).text)
    with pytest.raises(Forbidden):
        post(other, make_request("system:node:n8", ["system:nodes"]), KUBELET_CLIENT, "client auth")
    other.close()


def test_serving_names_are_approved_as_far_as_the_node_announces_them(
    cluster: Cluster, kubelet: RestClient
) -> None:
    addresses = [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "Hostname", "address": "n1"}]
    cluster.client.patch(NODES, "n1", {"status": {"addresses": addresses}}, subresource="status")
    shared = [{"type": "InternalIP", "address": "192.0.2.9"}]
    cluster.client.patch(NODES, "n2", {"status": {"addresses": shared}}, subresource="status")

    def ask(*names: str) -> str:
        pem = make_request("system:node:n1", ["system:nodes"], names=["n1"], addresses=names)
        return post(kubelet, pem, SERVING, "server auth")

    foreign, own = ask("192.0.2.7"), ask("192.0.2.1")
    assert issued(cluster, own).startswith(b"-----BEGIN CERTIFICATE-----")
    # The later one is through, so the earlier one has been looked at.
    assert not (cluster.client.get(REQUESTS, foreign).get("status") or {}).get("conditions")


def test_cluster_info_is_signed_for_a_token_and_expired_ones_go(cluster: Cluster, tmp_path: Path) -> None:
    def info() -> dict[str, str]:
        return dict(cluster.client.get(CONFIG_MAPS, "cluster-info", "kube-public")["data"])

    first = token(cluster, "signs0", expires=time.time() + 3600)
    key = "jws-kubeconfig-signs0"
    found = cluster.until("signed", lambda: info() if key in info() else None)
    assert bootstrap_tokens.verify(found["kubeconfig"], found[key], first)
    assert json.loads(found["kubeconfig"])["clusters"][0]["cluster"]["server"].startswith("https://")
    token(cluster, "short0", expires=time.time() + 1.5)

    def gone() -> bool:
        try:
            cluster.client.get(SECRETS, "bootstrap-token-short0", "kube-system")
        except NotFound:
            return "jws-kubeconfig-short0" not in info()
        return False

    cluster.until("the expired token and its signature removed", gone)
    assert key in info()
