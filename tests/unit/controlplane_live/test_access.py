"""Who may do what: certificates, tokens, RBAC, and a kubelet's own node, through the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from controlplane.apiserver.bootstrap import ensure_roles
from controlplane.apiserver.timestamps import rfc3339

from .conftest import MERGE, Client, Live, pod


def token(api: Client, namespace: str, name: str = "default", **spec: Any) -> str:
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    return str(api.must("POST", path, {"spec": spec})["status"]["token"])


def test_a_service_account_may_ask_who_it_is_and_no_more(live: Live, namespace: str) -> None:
    client = live.with_token(token(live.admin, namespace))
    found = client.must("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", {})
    assert found["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:default"
    code, status = client("GET", f"/api/v1/namespaces/{namespace}/pods")
    assert code == 403
    assert f'cannot list resource "pods" in API group "" in the namespace "{namespace}"' in status["message"]
    assert client("GET", "/apis")[0] == 200


def test_roles_grant_in_their_namespace_and_cluster_roles_everywhere(live: Live, namespace: str) -> None:
    api, rbac = live.admin, "/apis/rbac.authorization.k8s.io/v1"
    client = live.with_token(token(api, namespace))
    subject = [{"kind": "ServiceAccount", "name": "default", "namespace": namespace}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    body = {"metadata": {"name": "b"}, "subjects": subject, "roleRef": reference}
    api.must("POST", f"{rbac}/namespaces/{namespace}/rolebindings", body)
    pods = "/api/v1/namespaces/{}/pods"
    assert client("GET", pods.format(namespace))[0] == 200
    assert client("GET", pods.format("default"))[0] == 403
    assert client("GET", f"/api/v1/namespaces/{namespace}/secrets")[0] == 403
    assert client("POST", pods.format(namespace), pod("p"))[0] == 403
    body["metadata"] = {"name": f"b-{namespace}"}
    api.must("POST", f"{rbac}/clusterrolebindings", body)
    assert client("GET", pods.format("default"))[0] == 200
    review = {"spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}}
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    assert client.must("POST", path, review)["status"]["allowed"] is True
    api.must("DELETE", f"{rbac}/clusterrolebindings/b-{namespace}")
    assert client("GET", pods.format("default"))[0] == 403


def test_a_bound_token_ends_with_its_pod(live: Live, namespace: str) -> None:
    api = live.admin
    pods = f"/api/v1/namespaces/{namespace}/pods"
    made = api.must("POST", pods, pod("p"))
    reference = {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": made["metadata"]["uid"]}
    bound = token(api, namespace, boundObjectRef=reference)
    review = {"spec": {"token": bound}}
    path = "/apis/authentication.k8s.io/v1/tokenreviews"
    status = api.must("POST", path, review)["status"]
    assert status["authenticated"]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["p"]
    api.must("DELETE", f"{pods}/p")
    assert "authenticated" not in api.must("POST", path, review)["status"]
    assert live.with_token(bound)("GET", "/api")[0] == 401


def claims_of(text: str) -> dict[str, Any]:
    payload = text.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return found


def test_a_token_says_on_which_node_its_pod_is(live: Live, namespace: str) -> None:
    """Upstream's ServiceAccountTokenPodNodeInfo; the pod goes on being what counts."""
    api, nodes, name = live.admin, "/api/v1/nodes", f"node-{namespace}"
    uid = api.must("POST", nodes, {"metadata": {"name": name}})["metadata"]["uid"]
    api.must("POST", f"/api/v1/namespaces/{namespace}/pods", pod("p", nodeName=name))
    bound = token(api, namespace, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"})
    assert claims_of(bound)["kubernetes.io"]["node"] == {"name": name, "uid": uid}
    api.must("DELETE", f"{nodes}/{name}")
    review = "/apis/authentication.k8s.io/v1/tokenreviews"
    user = api.must("POST", review, {"spec": {"token": bound}})["status"]["user"]
    assert user["extra"]["authentication.kubernetes.io/node-name"] == [name]
    assert user["extra"]["authentication.kubernetes.io/node-uid"] == [uid]
    late = token(api, namespace, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"})
    assert claims_of(late)["kubernetes.io"]["node"] == {"name": name}


def test_a_token_bound_to_a_node_ends_with_it(live: Live, namespace: str) -> None:
    api, nodes, name = live.admin, "/api/v1/nodes", f"node-{namespace}"
    api.must("POST", nodes, {"metadata": {"name": name}})
    bound = token(api, namespace, boundObjectRef={"kind": "Node", "apiVersion": "v1", "name": name})
    review = "/apis/authentication.k8s.io/v1/tokenreviews"
    assert api.must("POST", review, {"spec": {"token": bound}})["status"]["authenticated"]
    api.must("DELETE", f"{nodes}/{name}")
    assert "authenticated" not in api.must("POST", review, {"spec": {"token": bound}})["status"]


@pytest.mark.parametrize(("ago", "good"), [(30, True), (90, False)])
def test_a_token_ends_though_its_pod_is_kept(live: Live, namespace: str, ago: int, good: bool) -> None:
    """A finalizer may keep what was deleted for ever; its token goes on for a minute."""
    api = live.admin
    api.must("POST", f"/api/v1/namespaces/{namespace}/pods", pod("p"))
    bound = token(api, namespace, boundObjectRef={"kind": "Pod", "apiVersion": "v1", "name": "p"})

    def delete(found: dict[str, Any]) -> dict[str, Any]:
        found["metadata"]["deletionTimestamp"] = rfc3339(time.time() - ago)
        return found

    live.store(("", "v1", "pods"), namespace, "p", delete)
    review = "/apis/authentication.k8s.io/v1/tokenreviews"
    status = api.must("POST", review, {"spec": {"token": bound}})["status"]
    assert status.get("authenticated", False) is good


@pytest.mark.parametrize("text", ["nonsense", "a.b.c", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0."])
def test_forged_tokens_are_refused(live: Live, text: str) -> None:
    code, status = live.with_token(text)("GET", "/api/v1/pods")
    assert (code, status["reason"]) == (401, "Unauthorized")


def test_a_token_that_was_changed_is_refused(live: Live, namespace: str) -> None:
    head, claims, signature = token(live.admin, namespace).split(".")
    other = token(live.admin, "kube-system").split(".")[1]
    assert live.with_token(f"{head}.{other}.{signature}")("GET", "/api")[0] == 401
    assert live.with_token(f"{head}.{claims}.{signature}")("GET", "/api")[0] == 200


def test_pods_get_their_accounts_token_volume(api: Client, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    spec = api.must("POST", pods, pod("p"))["spec"]
    mount = spec["containers"][0]["volumeMounts"][0]
    assert mount["mountPath"] == "/var/run/secrets/kubernetes.io/serviceaccount" and mount["readOnly"]
    assert mount["name"] == spec["volumes"][0]["name"]
    assert [next(iter(source)) for source in spec["volumes"][0]["projected"]["sources"]] == [
        "serviceAccountToken",
        "configMap",
        "downwardAPI",
    ]
    without = api.must("POST", pods, pod("q", automountServiceAccountToken=False))["spec"]
    assert "volumes" not in without and "volumeMounts" not in without["containers"][0]
    code, status = api("POST", pods, pod("r", serviceAccountName="nobody"))
    assert code == 403 and 'serviceaccount "nobody" not found' in status["message"]


def test_a_kubelet_is_held_to_its_own_node(live: Live, namespace: str) -> None:
    api, kubelet = live.admin, live.kubelet
    for name in ("mine", "other"):
        api.must("POST", f"/api/v1/namespaces/{namespace}/secrets", {"metadata": {"name": name}})
    nodes = "/api/v1/nodes"
    code, status = kubelet("POST", nodes, {"metadata": {"name": "n2"}})
    assert code == 403 and 'not allowed to modify node "n2"' in status["message"]
    kubelet.must("POST", nodes, {"metadata": {"name": "n1"}})
    pods = f"/api/v1/namespaces/{namespace}/pods"
    volume = [{"name": "v", "secret": {"secretName": "mine"}}]
    api.must("POST", pods, pod("here", nodeName="n1", volumes=volume))
    api.must("POST", pods, pod("there", nodeName="n2"))
    secrets = f"/api/v1/namespaces/{namespace}/secrets"
    assert kubelet("GET", f"{secrets}/mine")[0] == 200
    assert kubelet("GET", f"{secrets}?fieldSelector=metadata.name%3Dmine")[0] == 200
    assert kubelet("GET", f"{secrets}/other")[0] == 403
    assert kubelet("GET", secrets)[0] == 403
    running = {"status": {"phase": "Running"}}
    merge = "application/merge-patch+json"
    assert kubelet("PATCH", f"{pods}/here/status", running, Content_Type=merge)[0] == 200
    assert kubelet("PATCH", f"{pods}/there/status", running, Content_Type=merge)[0] == 403
    assert kubelet("DELETE", f"{pods}/there")[0] == 403
    assert kubelet("POST", pods, pod("own", nodeName="n1"))[0] == 403
    mirror = pod("mirror", nodeName="n1")
    mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x", "kubernetes.io/config.hash": "x"}
    code, status = kubelet("POST", pods, mirror)
    assert code == 403 and "with an owner reference set to itself" in status["message"]
    own = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u", "controller": True}
    for owner, expected in (({**own, "name": "n2"}, 403), (own, 201)):
        mirror["metadata"]["ownerReferences"] = [owner]
        assert kubelet("POST", pods, mirror)[0] == expected
    assert kubelet("PATCH", f"{nodes}/n1/status", {"status": {}}, Content_Type=merge)[0] == 200
    api.must("DELETE", f"{nodes}/n1")


def test_impersonation_is_for_those_who_may(live: Live, namespace: str) -> None:
    headers = {"Impersonate_User": f"system:serviceaccount:{namespace}:default"}
    assert live.admin("GET", "/api/v1/pods", **headers)[0] == 403
    client = live.with_token(token(live.admin, namespace))
    code, status = client("GET", "/api/v1/pods", Impersonate_User="kubernetes-admin")
    assert code == 403 and "cannot impersonate" in status["message"]


def test_all_parts_of_another_identity_are_shown_and_each_has_its_right(live: Live, namespace: str) -> None:
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    parts = {
        "Impersonate_User": "alice",
        "Impersonate_Group": "staff",
        "Impersonate_Uid": "7",
        "Impersonate_Extra_Scopes": "view",
    }
    found = live.admin.must("POST", path, {}, **parts)["status"]["userInfo"]
    groups = ["staff", "system:authenticated"]
    assert found == {"username": "alice", "uid": "7", "groups": groups, "extra": {"scopes": ["view"]}}
    for alone in ("Impersonate_Group", "Impersonate_Uid", "Impersonate_Extra_Scopes"):
        code, status = live.admin("POST", path, {}, **{alone: "x"})
        assert code == 400 and "without impersonating a user" in status["message"]

    client = live.with_token(token(live.admin, namespace))
    roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles"
    bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings"
    rule = {"verbs": ["impersonate"], "apiGroups": [""], "resources": ["users", "serviceaccounts"]}
    name = f"impersonator-{namespace}"
    live.admin.must("POST", roles, {"metadata": {"name": name}, "rules": [rule]})
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
    body = {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}
    live.admin.must("POST", bindings, body)
    assert client("POST", path, {}, Impersonate_User="alice")[0] == 201
    for part, value, said in (
        ("Impersonate_Group", "staff", 'groups "staff" is forbidden'),
        ("Impersonate_Uid", "7", 'uids.authentication.k8s.io "7" is forbidden'),
        ("Impersonate_Extra_Scopes", "view", 'cannot impersonate resource "userextras/scopes"'),
    ):
        code, status = client("POST", path, {}, Impersonate_User="alice", **{part: value})
        assert code == 403 and said in status["message"]
    account = client.must("POST", path, {}, Impersonate_User=f"system:serviceaccount:{namespace}:other")
    assert f"system:serviceaccounts:{namespace}" in account["status"]["userInfo"]["groups"]


def test_a_kubelet_gets_tokens_for_its_own_pods_only(live: Live, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/default/token"
    for name, node, code in (("here", "n1", 201), ("there", "n2", 403)):
        made = live.admin.must("POST", pods, pod(name, nodeName=node))
        reference = {"kind": "Pod", "apiVersion": "v1", "name": name, "uid": made["metadata"]["uid"]}
        assert live.kubelet("POST", path, {"spec": {"boundObjectRef": reference}})[0] == code
    assert live.kubelet("POST", path, {"spec": {}})[0] == 403


def test_a_mirror_pod_reaches_nothing_that_its_node_may_not_have(live: Live, namespace: str) -> None:
    """Else a kubelet could name any Secret in a mirror pod, and then read it as one of its own."""
    pods = f"/api/v1/namespaces/{namespace}/pods"
    claim = {"name": "v", "persistentVolumeClaim": {"claimName": "c"}}
    specs: list[tuple[dict[str, Any], str]] = [
        ({"volumes": [{"name": "v", "secret": {"secretName": "other"}}]}, "secrets"),
        ({"volumes": [{"name": "v", "configMap": {"name": "other"}}]}, "configmaps"),
        ({"imagePullSecrets": [{"name": "other"}]}, "secrets"),
        ({"volumes": [claim]}, "persistentvolumeclaims"),
        ({"serviceAccountName": "default"}, "a service account"),
    ]
    for spec, what in specs:
        mirror = pod("mirror", nodeName="n1", **spec)
        mirror["metadata"]["annotations"] = {"kubernetes.io/config.mirror": "x"}
        mirror["metadata"]["ownerReferences"] = [
            {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u"}
        ]
        code, status = live.kubelet("POST", pods, mirror)
        assert code == 403 and f"can not create pods that reference {what}" in status["message"], status


def test_a_kubelet_sees_no_pods_and_no_leases_of_other_nodes(live: Live, namespace: str) -> None:
    kubelet, pods = live.kubelet, f"/api/v1/namespaces/{namespace}/pods"
    for name, node in (("here", "n1"), ("there", "n2"), ("nowhere", "")):
        live.admin.must("POST", pods, pod(name, **({"nodeName": node} if node else {})))
    assert [kubelet("GET", f"{pods}/{name}")[0] for name in ("here", "there", "nowhere")] == [200, 403, 403]
    for path, code in (
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn1", 200),
        ("/api/v1/pods?fieldSelector=spec.nodeName%3Dn2", 403),
        ("/api/v1/pods?fieldSelector=spec.nodeName%21%3Dn2", 403),
        ("/api/v1/pods", 403),
        (pods, 403),
        ("/api/v1/pods?watch=1&timeoutSeconds=1", 403),
    ):
        assert kubelet("GET", path)[0] == code, path
    policies = f"/apis/networking.k8s.io/v1/namespaces/{namespace}/networkpolicies"
    live.admin.must("POST", policies, {"metadata": {"name": "p"}, "spec": {"podSelector": {}}})
    assert kubelet("GET", "/api/v1/pods")[0] == 200, "its proxy judges by the labels of all pods"
    assert kubelet("GET", f"{pods}/there")[0] == 403
    live.admin.must("DELETE", f"{policies}/p")
    assert kubelet("GET", "/api/v1/pods")[0] == 403
    leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
    for name in ("n1", "n2"):
        live.admin("POST", leases, {"metadata": {"name": name}})
    assert kubelet("GET", f"{leases}/n1")[0] == 200
    assert kubelet("GET", f"{leases}/n2")[0] == 403
    assert kubelet("PUT", f"{leases}/n2", {"metadata": {"name": "n2"}})[0] == 403
    assert kubelet("DELETE", f"{leases}/n2")[0] == 403
    assert kubelet("GET", leases)[0] == 403
    assert kubelet("POST", leases, {"metadata": {"name": "n3"}})[0] == 403
    elsewhere = leases.replace("kube-node-lease", "default")
    assert kubelet("POST", elsewhere, {"metadata": {"name": "n1"}})[0] == 403


def test_a_kubelet_does_not_label_itself_as_trusted(live: Live) -> None:
    """NodeRestriction: labels, owners and taints of its own Node."""
    nodes, kubelet = "/api/v1/nodes", live.kubelet
    live.admin("DELETE", f"{nodes}/n1")
    reserved = {"node-restriction.kubernetes.io/tier": "gold"}
    code, status = kubelet("POST", nodes, {"metadata": {"name": "n1", "labels": reserved}})
    assert (
        code == 403 and "set the following labels: node-restriction.kubernetes.io/tier" in status["message"]
    )
    own = {
        "kubernetes.io/hostname": "n1",
        "kubernetes.io/os": "linux",
        "node.kubernetes.io/mine": "x",
        "a/b": "c",
    }
    kubelet.must("POST", nodes, {"metadata": {"name": "n1", "labels": own}})
    live.admin.patch(f"{nodes}/n1", {"metadata": {"labels": reserved}})
    for labels, expected in (
        ({"a/b": None, "plain": "x", "topology.kubernetes.io/zone": "z"}, 200),
        ({"node-restriction.kubernetes.io/tier": None}, 403),
        ({"node-restriction.kubernetes.io/tier": "platinum"}, 403),
        ({"x.node-restriction.kubernetes.io/tier": "gold"}, 403),
        ({"node-role.kubernetes.io/control-plane": ""}, 403),
        ({"app.k8s.io/x": "y"}, 403),
        ({"kubelet.kubernetes.io/x": "y"}, 200),
    ):
        change = {"metadata": {"labels": labels}}
        code, status = kubelet("PATCH", f"{nodes}/n1", change, Content_Type=MERGE)
        assert code == expected, (labels, status)
        code, status = kubelet("PATCH", f"{nodes}/n1/status", change, Content_Type=MERGE)
        assert code == expected, ("status", labels, status)
    owner = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "c", "uid": "u"}]
    code, status = kubelet(
        "PATCH", f"{nodes}/n1", {"metadata": {"ownerReferences": owner}}, Content_Type=MERGE
    )
    assert code == 403 and "modify ownerReferences" in status["message"]
    source = {"configSource": {"configMap": {"namespace": "x", "name": "c", "kubeletConfigKey": "k"}}}
    code, status = kubelet("PATCH", f"{nodes}/n1", {"spec": source}, Content_Type=MERGE)
    assert code == 403 and "update configSource to a new non-nil configSource" in status["message"]
    taints = [{"key": "a", "effect": "NoSchedule"}]
    code, status = kubelet("PATCH", f"{nodes}/n1", {"spec": {"taints": taints}}, Content_Type=MERGE)
    assert code == 403 and "modify taints" in status["message"]
    live.admin.must("DELETE", f"{nodes}/n1")


def test_a_pods_labels_do_not_change_through_its_status(live: Live, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    live.admin.must("POST", pods, pod("here", nodeName="n1"))
    change = {"metadata": {"labels": {"app": "web"}}, "status": {"phase": "Running"}}
    code, status = live.kubelet("PATCH", f"{pods}/here/status", change, Content_Type=MERGE)
    assert code == 403 and "cannot update labels through pod status" in status["message"]


RBAC = "/apis/rbac.authorization.k8s.io/v1"
API_GROUP = "rbac.authorization.k8s.io"


def bind(name: str, role: str, account: str, namespace: str) -> dict[str, Any]:
    subject = {"kind": "ServiceAccount", "name": account, "namespace": namespace}
    reference = {"apiGroup": API_GROUP, "kind": "ClusterRole", "name": role}
    return {"metadata": {"name": name}, "subjects": [subject], "roleRef": reference}


def test_nobody_grants_what_they_do_not_have(live: Live, namespace: str) -> None:
    here = f"{RBAC}/namespaces/{namespace}"
    live.admin.must("POST", f"{here}/rolebindings", bind("tenant", "admin", "default", namespace))
    tenant = live.with_token(token(live.admin, namespace))
    lift = {"verbs": ["get", "delete"], "apiGroups": [""], "resources": ["resourcequotas"]}
    own = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods", "pods/log"]}
    code, status = tenant("POST", f"{here}/roles", {"metadata": {"name": "lift"}, "rules": [lift, own]})
    assert code == 403 and f'roles.{API_GROUP} "lift" is forbidden: user "system:serv' in status["message"]
    assert status["message"].endswith(
        'not currently held:\n{APIGroups:[""], Resources:["resourcequotas"], Verbs:["delete"]}'
    )
    tenant.must("POST", f"{here}/roles", {"metadata": {"name": "mine"}, "rules": [own]})
    code, _ = tenant("PATCH", f"{here}/roles/mine", {"rules": [own, lift]}, Content_Type=MERGE)
    assert code == 403
    assert tenant("POST", f"{here}/rolebindings", bind("more", "cluster-admin", "x", namespace))[0] == 403
    assert tenant("POST", f"{here}/rolebindings", bind("gone", "nobody", "x", namespace))[0] == 404
    assert tenant("POST", f"{here}/rolebindings", bind("same", "view", "x", namespace))[0] == 201


def test_a_tenant_installs_an_ordinary_chart_on_a_cluster_that_is_older(live: Live, namespace: str) -> None:
    def strip(role: dict[str, Any]) -> dict[str, Any]:
        role["rules"] = [rule for rule in role["rules"] if "extensions" not in rule["apiGroups"]]
        del role["aggregationRule"]
        return role

    live.store((API_GROUP, "v1", "clusterroles"), "", "admin", strip)
    here = f"{RBAC}/namespaces/{namespace}"
    live.admin.must("POST", f"{here}/rolebindings", bind("tenant", "admin", "default", namespace))
    tenant = live.with_token(token(live.admin, namespace))
    rules = [
        {"verbs": ["get"], "apiGroups": ["extensions", "networking.k8s.io"], "resources": ["ingresses"]},
        {"verbs": ["create", "patch"], "apiGroups": [""], "resources": ["events"]},
    ]
    chart = {"metadata": {"name": "chart"}, "rules": rules}
    assert tenant("POST", f"{here}/roles", chart)[0] == 403
    asyncio.run_coroutine_threadsafe(ensure_roles(live.server.registry), live.loop).result(10)
    assert tenant("POST", f"{here}/roles", chart)[0] == 201


def test_rules_that_nobody_would_take_any_more_do_not_keep_the_server_from_starting(live: Live) -> None:
    """A role of an older version, with a rule that was somebody's own."""
    mixed = {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "nonResourceURLs": ["/metrics"]}

    def strip(role: dict[str, Any]) -> dict[str, Any]:
        role["rules"].append(mixed)
        del role["aggregationRule"]
        return role

    part = f"{RBAC}/clusterroles/system:aggregate-to-edit"
    before = live.admin.must("GET", part)
    live.store((API_GROUP, "v1", "clusterroles"), "", "edit", strip)
    live.admin.must("DELETE", part)
    asyncio.run_coroutine_threadsafe(ensure_roles(live.server.registry), live.loop).result(10)
    assert live.admin.must("GET", part)["rules"] == before["rules"]
    live.admin.must("DELETE", f"{RBAC}/clusterroles/edit")
    asyncio.run_coroutine_threadsafe(ensure_roles(live.server.registry), live.loop).result(10)
    assert "aggregationRule" in live.admin.must("GET", f"{RBAC}/clusterroles/edit")


def test_who_may_not_do_everything_makes_no_role_that_gathers(live: Live, namespace: str) -> None:
    roles = f"{RBAC}/clusterroles"
    name = f"granter-{namespace}"
    own = {"verbs": ["create"], "apiGroups": [API_GROUP], "resources": ["clusterroles"]}
    live.admin.must("POST", roles, {"metadata": {"name": name}, "rules": [own]})
    binding = bind(name, name, "default", namespace)
    binding["subjects"][0]["namespace"] = namespace
    live.admin.must("POST", f"{RBAC}/clusterrolebindings", binding)
    tenant = live.with_token(token(live.admin, namespace))
    gathering = {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}
    body = {"metadata": {"name": f"{name}-2"}, "aggregationRule": gathering, "rules": []}
    code, status = tenant("POST", roles, body)
    assert (
        code == 403 and "must have cluster-admin privileges to use the aggregationRule" in status["message"]
    )
    code, status = live.admin("POST", roles, {**body, "aggregationRule": {"clusterRoleSelectors": []}})
    assert code == 422 and "at least one clusterRoleSelector required" in status["message"]
    wrong = {"matchExpressions": [{"key": "a", "operator": "Near"}]}
    code, status = live.admin("POST", roles, {**body, "aggregationRule": {"clusterRoleSelectors": [wrong]}})
    assert code == 422 and "clusterRoleSelectors[0].matchExpressions[0].operator" in status["message"]
    live.admin.must("POST", roles, body)


def test_a_write_that_grants_nothing_new_is_no_escalation(live: Live, namespace: str) -> None:
    here = f"{RBAC}/namespaces/{namespace}"
    live.admin.must("POST", f"{here}/rolebindings", bind("tenant", "admin", "default", namespace))
    rules = [{"verbs": ["delete"], "apiGroups": [""], "resources": ["nodes"]}]
    wide = {"metadata": {"name": "wide", "finalizers": ["a.example/f"]}, "rules": rules}
    made = live.admin.must("POST", f"{here}/roles", wide)
    tenant = live.with_token(token(live.admin, namespace))
    assert tenant("PUT", f"{here}/roles/wide", made)[0] == 200
    freed = tenant.patch(f"{here}/roles/wide", {"metadata": {"finalizers": None}})
    assert "finalizers" not in freed["metadata"]
    code, _ = tenant("PATCH", f"{here}/roles/wide", {"metadata": {"labels": {"a": "b"}}}, Content_Type=MERGE)
    assert code == 403


def test_who_may_escalate_or_bind_grants_more(live: Live, namespace: str) -> None:
    here = f"{RBAC}/namespaces/{namespace}"
    rules = [
        {"verbs": ["create", "update", "escalate"], "apiGroups": [API_GROUP], "resources": ["roles"]},
        {"verbs": ["create"], "apiGroups": [API_GROUP], "resources": ["rolebindings"]},
        {
            "verbs": ["bind"],
            "apiGroups": [API_GROUP],
            "resources": ["clusterroles"],
            "resourceNames": ["edit"],
        },
    ]
    live.admin.must("POST", f"{here}/roles", {"metadata": {"name": "granter"}, "rules": rules})
    binding = bind("granter", "granter", "default", namespace)
    binding["roleRef"]["kind"] = "Role"
    live.admin.must("POST", f"{here}/rolebindings", binding)
    granter = live.with_token(token(live.admin, namespace))
    everything = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
    granter.must("POST", f"{here}/roles", {"metadata": {"name": "all"}, "rules": everything})
    granter.must("POST", f"{here}/rolebindings", bind("edit", "edit", "x", namespace))
    code, status = granter("POST", f"{here}/rolebindings", bind("admin", "admin", "x", namespace))
    assert code == 403 and "not currently held" in status["message"]


def test_others_can_verify_a_token_by_what_the_issuer_tells(live: Live, namespace: str) -> None:
    """As a service outside would: nothing but the two documents, the token and a library's ECDSA."""
    given = token(live.admin, namespace)
    account = live.with_token(given)
    found = account.must("GET", "/.well-known/openid-configuration")
    header, payload, signature = (unpadded(part) for part in given.split("."))
    assert json.loads(payload)["iss"] == found["issuer"]
    assert json.loads(header)["alg"] in found["id_token_signing_alg_values_supported"]
    assert found["jwks_uri"].endswith("/openid/v1/jwks")
    answered = account.send("GET", "/openid/v1/jwks")
    assert answered.headers["Content-Type"] == "application/jwk-set+json"
    key = {key["kid"]: key for key in answered.json()["keys"]}[json.loads(header)["kid"]]
    x, y = (int.from_bytes(unpadded(key[name])) for name in ("x", "y"))
    public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    halves = (int.from_bytes(half) for half in (signature[:32], signature[32:]))
    public.verify(encode_dss_signature(*halves), given.rpartition(".")[0].encode(), ec.ECDSA(hashes.SHA256()))
    assert live.anonymous("GET", "/openid/v1/jwks")[0] == 403


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
