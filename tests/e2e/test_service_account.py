"""A pod speaks to the API server as its ServiceAccount: mounted token and CA, RBAC, token requests."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from e2e_node import Node, need_kubectl, pod

pytestmark = pytest.mark.e2e

FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"

# What an in-cluster client does: address from the environment, token and CA from the mounted files.
ASK = f"""
import json, os, ssl, sys, urllib.error, urllib.request
token = open("{FOLDER}/token").read()
trust = ssl.create_default_context(cafile="{FOLDER}/ca.crt" if sys.argv[3] == "ours" else None)
host, port = (os.environ["KUBERNETES_SERVICE_" + name] for name in ("HOST", "PORT"))
url = "https://" + host + ":" + port + sys.argv[2]
request = urllib.request.Request(url, method=sys.argv[1], headers={{"Authorization": "Bearer " + token}})
try:
    answer = urllib.request.urlopen(request, context=trust, timeout=5)
    print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except urllib.error.URLError as error:
    print(0, error.reason)
"""


def python_pod(name: str, **spec: Any) -> dict[str, Any]:
    """A pod that sees the host's own Python, read-only: the busybox image has none."""
    folders = [folder for folder in ("/usr", "/lib", "/lib64") if os.path.isdir(folder)]
    mounts = [{"name": f.strip("/"), "mountPath": f, "readOnly": True} for f in folders]
    volumes = [{"name": f.strip("/"), "hostPath": {"path": f, "type": "Directory"}} for f in folders]
    return pod(name, container={"volumeMounts": mounts}, volumes=volumes, **spec)


@pytest.fixture(scope="module")
def client(node: Node) -> Iterator[Node]:
    node.kubectl("create", "serviceaccount", "reader")
    node.apply(python_pod("inside", serviceAccountName="reader"))
    node.wait_running("inside")
    yield node
    node.kubectl("delete", "pod/inside", "serviceaccount/reader")


def ask(node: Node, path: str, method: str = "GET", trust: str = "ours") -> tuple[int, str]:
    """Status code (0: no answer) and body of a request made inside the pod."""
    argv = ["/usr/bin/python3", "-c", ASK, method, path, trust]
    code, _, body = node.kubectl("exec", "inside", "--", *argv).out.partition(" ")
    return int(code), body


def test_the_token_names_the_account_and_the_pod(client: Node) -> None:
    files = client.kubectl("exec", "inside", "--", "sh", "-c", f"ls {FOLDER}; cat {FOLDER}/namespace").out
    assert files.split() == ["ca.crt", "namespace", "token", "default"]
    token = client.kubectl("exec", "inside", "--", "cat", f"{FOLDER}/token").out
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["sub"] == "system:serviceaccount:default:reader"
    assert claims["kubernetes.io"]["pod"]["name"] == "inside"
    assert claims["kubernetes.io"]["pod"]["uid"] == client.get("pod", "inside")["metadata"]["uid"]


def test_tls_holds_with_the_mounted_ca_and_only_with_it(client: Node) -> None:
    code, body = ask(client, "/version")
    assert code == 200 and json.loads(body)["major"] == "1"
    code, reason = ask(client, "/version", trust="system")
    assert code == 0 and "CERTIFICATE_VERIFY_FAILED" in reason


def test_what_no_role_allows_is_forbidden_until_a_role_binding_allows_it(client: Node) -> None:
    node, path = client, "/api/v1/namespaces/default/pods"
    code, body = ask(node, path)
    status = json.loads(body)
    assert (code, status["reason"]) == (403, "Forbidden")
    assert 'User "system:serviceaccount:default:reader" cannot list resource "pods"' in status["message"]
    can = ("auth", "can-i", "list", "pods", "--as=system:serviceaccount:default:reader")
    assert node.kubectl(*can, check=False).out.strip() == "no"

    node.kubectl("create", "role", "see-pods", "--verb=get,list", "--resource=pods")
    node.kubectl("create", "rolebinding", "see-pods", "--role=see-pods", "--serviceaccount=default:reader")
    node.until("allowed", lambda: ask(node, path)[0] == 200)
    names = [item["metadata"]["name"] for item in json.loads(ask(node, path)[1])["items"]]
    assert "inside" in names
    assert node.kubectl(*can).out.strip() == "yes"
    # Only that verb, that resource, that namespace.
    assert ask(node, f"{path}/inside", "DELETE")[0] == 403
    assert ask(node, "/api/v1/namespaces/default/secrets")[0] == 403
    assert ask(node, "/api/v1/namespaces/kube-system/pods")[0] == 403
    assert ask(node, "/api/v1/pods")[0] == 403

    node.kubectl("delete", "rolebinding", "see-pods")
    node.until("forbidden again", lambda: ask(node, path)[0] == 403)
    node.kubectl("delete", "role", "see-pods")


def test_a_cluster_role_binding_reaches_every_namespace(client: Node) -> None:
    client.kubectl("create", "clusterrolebinding", "reader-views", "--clusterrole=view",
                   "--serviceaccount=default:reader")  # fmt: skip
    client.until("allowed", lambda: ask(client, "/api/v1/pods")[0] == 200)
    assert ask(client, "/api/v1/secrets")[0] == 403, "view shows no Secrets"
    client.kubectl("delete", "clusterrolebinding", "reader-views")


def test_a_pod_may_do_without_a_token(node: Node) -> None:
    node.apply(pod("without", automountServiceAccountToken=False))
    node.wait_running("without")
    assert node.kubectl("exec", "without", "--", "ls", FOLDER, check=False).code != 0
    assert node.get("pod", "without")["spec"]["serviceAccountName"] == "default"
    node.kubectl("delete", "pod", "without")


def test_the_token_ends_with_its_pod(node: Node) -> None:
    node.apply(pod("brief"))
    node.wait_running("brief")
    token = node.kubectl("exec", "brief", "--", "cat", f"{FOLDER}/token").out
    server = node.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").out
    ca = str(node.root / "etc/kubelet-py/pki/ca.crt")
    argv = ["curl", "-s", "-m", "5", "--cacert", ca, "-H", f"Authorization: Bearer {token}"]
    review = [*argv, f"{server}/api/v1/namespaces/default/pods"]
    assert json.loads(node._run(review, check=True, timeout=10).out)["reason"] == "Forbidden"
    node.kubectl("delete", "pod", "brief")
    node.until(
        "token refused",
        lambda: json.loads(node._run(review, check=True, timeout=10).out)["reason"] == "Unauthorized",
    )


def test_a_token_asked_for_by_name_works_outside_and_a_made_up_one_does_not(node: Node) -> None:
    need_kubectl("1.24", "create token")
    node.kubectl("create", "serviceaccount", "outsider")
    token = node.kubectl("create", "token", "outsider", "--duration=10m").out.strip()
    server = node.kubectl("config", "view", "-o", "jsonpath={.clusters[0].cluster.server}").out
    ca = str(node.root / "etc/kubelet-py/pki/ca.crt")

    def code(bearer: str) -> int:
        argv = ["curl", "-s", "-m", "5", "--cacert", ca, "-H", f"Authorization: Bearer {bearer}"]
        done = node._run([*argv, f"{server}/api/v1/namespaces/default/pods"], check=True, timeout=10)
        return int(json.loads(done.out)["code"])

    assert code(token) == 403
    head, payload, signature = token.split(".")
    assert code(f"{head}.{payload}.{signature[:-4]}AAAA") == 401
    assert code("guess") == 401
    node.kubectl("delete", "serviceaccount", "outsider")
    node.until("refused", lambda: code(token) == 401)
