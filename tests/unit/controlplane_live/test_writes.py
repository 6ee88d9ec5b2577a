"""Writes through the real server: locking, status, deletion, allocation."""

from __future__ import annotations

import json
import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

import pytest

from .conftest import MERGE, STRATEGIC, TABLE, Client, pod

CONFIG = "/api/v1/namespaces/{}/configmaps"
PODS = "/api/v1/namespaces/{}/pods"
DEPLOYMENTS = "/apis/apps/v1/namespaces/{}/deployments"


def config(name: str, **data: str) -> dict[str, Any]:
    return {"metadata": {"name": name}, "data": data}


def deployment(name: str) -> dict[str, Any]:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod("x")["spec"]}
    spec = {"selector": {"matchLabels": {"a": "b"}}, "template": template}
    return {"metadata": {"name": name}, "spec": spec}


def test_a_second_create_of_a_name_is_refused(api: Client, namespace: str) -> None:
    api.must("POST", CONFIG.format(namespace), config("a"))
    code, status = api("POST", CONFIG.format(namespace), config("a"))
    assert (code, status["reason"]) == (409, "AlreadyExists")


def test_put_of_an_old_version_conflicts(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    old = api.must("POST", path, config("a"))
    api.patch(f"{path}/a", {"data": {"k": "1"}})
    code, status = api("PUT", f"{path}/a", {**old, "data": {"k": "2"}})
    assert (code, status["reason"]) == (409, "Conflict")
    del old["metadata"]["resourceVersion"]
    assert api.must("PUT", f"{path}/a", {**old, "data": {"k": "2"}})["data"] == {"k": "2"}


def test_a_write_that_changes_nothing_keeps_the_version(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    old = api.must("POST", path, config("a", k="1"))
    same = api.patch(f"{path}/a", {"data": {"k": "1"}})
    assert same["metadata"]["resourceVersion"] == old["metadata"]["resourceVersion"]


def test_three_kinds_of_patch(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    api.must("POST", path, config("a", k="1", gone="x"))
    assert api.patch(f"{path}/a", {"data": {"gone": None, "n": "2"}})["data"] == {"k": "1", "n": "2"}
    operations = [{"op": "replace", "path": "/data/k", "value": "3"}]
    patched = api.patch(f"{path}/a", operations, "application/json-patch+json")
    assert patched["data"] == {"k": "3", "n": "2"}
    web = DEPLOYMENTS.format(namespace)
    api.must("POST", web, deployment("d"))
    containers = [{"name": "c", "image": "other"}, {"name": "e", "image": "extra"}]
    body = {"spec": {"template": {"spec": {"containers": containers}}}}
    merged = api.patch(f"{web}/d", body, STRATEGIC)["spec"]["template"]["spec"]["containers"]
    assert [(item["name"], item["image"]) for item in merged] == [("c", "other"), ("e", "extra")]


def test_spec_and_status_have_different_doors_and_generation_counts_specs(
    api: Client, namespace: str
) -> None:
    path = DEPLOYMENTS.format(namespace)
    made = api.must("POST", path, {**deployment("d"), "status": {"replicas": 9}})
    assert made["metadata"]["generation"] == 1 and "replicas" not in made["status"]
    body = {"spec": {"replicas": 4}, "status": {"observedGeneration": 1}}
    after = api.patch(f"{path}/d/status", body)
    assert after["spec"]["replicas"] == 1 and after["status"]["observedGeneration"] == 1
    assert after["metadata"]["generation"] == 1
    after = api.patch(f"{path}/d", {"spec": {"replicas": 4}, "status": {"observedGeneration": 7}})
    assert after["spec"]["replicas"] == 4 and after["status"]["observedGeneration"] == 1
    assert after["metadata"]["generation"] == 2


def test_scale_changes_replicas_and_nothing_else(api: Client, namespace: str) -> None:
    path = DEPLOYMENTS.format(namespace)
    api.must("POST", path, deployment("d"))
    scale = api.must("GET", f"{path}/d/scale")
    assert scale["spec"] == {"replicas": 1} and scale["status"]["selector"] == "a=b"
    scale["spec"]["replicas"] = 3
    assert api.must("PUT", f"{path}/d/scale", scale)["spec"] == {"replicas": 3}
    shown = api.must("GET", f"{path}/d/scale", Accept=TABLE)
    names = [column["name"] for column in shown["columnDefinitions"]]
    assert names == ["Name", "Desired", "Available", "Age"]
    assert shown["rows"][0]["cells"][:3] == ["d", 3, 0]
    assert api.patch(f"{path}/d/scale", {"spec": {"replicas": 0}})["spec"] == {}
    code, _ = api("PATCH", f"{path}/d/scale", {"spec": {"replicas": -1}}, Content_Type=MERGE)
    assert code == 422


def test_generate_name_and_missing_name(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    made = [api.must("POST", path, {"metadata": {"generateName": "g-"}}) for _ in range(2)]
    names = {item["metadata"]["name"] for item in made}
    assert len(names) == 2 and all(name.startswith("g-") and len(name) == 7 for name in names)
    code, status = api("POST", path, {"metadata": {}})
    assert code == 422 and "name or generateName is required" in status["message"]


def test_dry_run_answers_and_stores_nothing(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    answered = api.must("POST", f"{path}?dryRun=All", config("a"))
    assert answered["metadata"]["uid"] and "resourceVersion" not in answered["metadata"]
    assert api("GET", f"{path}/a")[0] == 404
    api.must("POST", path, config("a", k="1"))
    api.must("PATCH", f"{path}/a?dryRun=All", {"data": {"k": "2"}}, Content_Type=MERGE)
    api.must("DELETE", f"{path}/a?dryRun=All")
    assert api.must("GET", f"{path}/a")["data"] == {"k": "1"}


def test_a_bound_pod_is_marked_first_and_goes_when_its_kubelet_says_so(api: Client, namespace: str) -> None:
    path = PODS.format(namespace)
    made = api.must("POST", path, pod("p"))
    assert made["status"] == {"phase": "Pending", "qosClass": "BestEffort"}
    assert made["spec"]["serviceAccountName"] == "default"
    api.must("POST", f"{path}/p/binding", {"target": {"name": "n1"}})
    code, status = api("POST", f"{path}/p/binding", {"target": {"name": "n2"}})
    assert code == 409 and "already assigned" in status["message"]
    marked = api.must("DELETE", f"{path}/p", {"gracePeriodSeconds": 20})
    assert marked["metadata"]["deletionGracePeriodSeconds"] == 20
    shorter = api.must("DELETE", f"{path}/p", {"gracePeriodSeconds": 5})
    assert shorter["metadata"]["deletionGracePeriodSeconds"] == 5
    longer = api.must("DELETE", f"{path}/p", {"gracePeriodSeconds": 50})
    assert longer["metadata"]["deletionGracePeriodSeconds"] == 5
    wrong = {"gracePeriodSeconds": 0, "preconditions": {"uid": "another"}}
    assert api("DELETE", f"{path}/p", wrong)[0] == 409
    right = {"gracePeriodSeconds": 0, "preconditions": {"uid": made["metadata"]["uid"]}}
    api.must("DELETE", f"{path}/p", right)
    assert api("GET", f"{path}/p")[0] == 404


def test_a_pod_that_runs_nowhere_goes_at_once(api: Client, namespace: str) -> None:
    path = PODS.format(namespace)
    api.must("POST", path, pod("p"))
    api.must("DELETE", f"{path}/p")
    assert api("GET", f"{path}/p")[0] == 404


def test_finalizers_keep_an_object_until_the_last_is_gone(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    api.must("POST", path, {"metadata": {"name": "a", "finalizers": ["x.io/one"]}})
    marked = api.must("DELETE", f"{path}/a")
    assert marked["metadata"]["deletionTimestamp"]
    assert api("GET", f"{path}/a")[0] == 200
    api.patch(f"{path}/a", {"metadata": {"finalizers": None}})
    assert api("GET", f"{path}/a")[0] == 404


def test_foreground_deletion_waits_for_the_garbage_collector(api: Client, namespace: str) -> None:
    path = DEPLOYMENTS.format(namespace)
    api.must("POST", path, deployment("d"))
    marked = api.must("DELETE", f"{path}/d", {"propagationPolicy": "Foreground"})
    assert marked["metadata"]["finalizers"] == ["foregroundDeletion"]
    api.patch(f"{path}/d", {"metadata": {"finalizers": []}})
    assert api("GET", f"{path}/d")[0] == 404


def test_a_namespace_terminates_refuses_content_and_goes_when_finalized(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}"
    gone = api.must("DELETE", path)
    assert gone["status"]["phase"] == "Terminating"
    code, status = api("POST", CONFIG.format(namespace), config("a"))
    assert code == 403 and status["details"]["causes"][0]["reason"] == "NamespaceTerminating"
    api.must("PUT", f"{path}/finalize", {**gone, "spec": {}})
    assert api("GET", path)[0] == 404
    code, status = api("POST", CONFIG.format(namespace), config("a"))
    assert (code, status["message"]) == (404, f'namespaces "{namespace}" not found')


def test_the_first_namespaces_cannot_be_deleted(api: Client) -> None:
    code, status = api("DELETE", "/api/v1/namespaces/default")
    assert code == 403 and "may not be deleted" in status["message"]


def test_services_get_addresses_and_ports_of_their_own(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services"
    spec = {"type": "NodePort", "selector": {"a": "b"}, "ports": [{"port": 80}]}
    made = [api.must("POST", path, {"metadata": {"name": name}, "spec": spec}) for name in ("s1", "s2")]
    addresses = {item["spec"]["clusterIP"] for item in made}
    ports = {item["spec"]["ports"][0]["nodePort"] for item in made}
    assert len(addresses) == len(ports) == 2 and all(30000 <= port <= 32767 for port in ports)
    taken = made[0]["spec"]["ports"][0]["nodePort"]
    again = {"metadata": {"name": "s3"}, "spec": {**spec, "ports": [{"port": 80, "nodePort": taken}]}}
    code, status = api("POST", path, again)
    assert code == 422 and "provided port is already allocated" in status["message"]
    api.must("DELETE", f"{path}/s1")
    assert api.must("POST", path, again)["spec"]["ports"][0]["nodePort"] == taken
    fixed = {"metadata": {"name": "s4"}, "spec": {"clusterIP": "192.0.2.9", "ports": [{"port": 80}]}}
    code, status = api("POST", path, fixed)
    assert code == 422 and "not in the valid range" in status["message"]
    plain = {"spec": {"type": "ClusterIP"}}
    assert "nodePort" not in api.patch(f"{path}/s3", plain)["spec"]["ports"][0]


def test_replacing_a_service_need_not_repeat_its_address(api: Client, namespace: str) -> None:
    path = f"/api/v1/namespaces/{namespace}/services"
    body = {"metadata": {"name": "s"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}}
    made = api.must("POST", path, body)
    after = api.must("PUT", f"{path}/s", {**body, "spec": {"selector": {"c": "d"}, "ports": [{"port": 80}]}})
    assert after["spec"]["clusterIP"] == made["spec"]["clusterIP"]


@pytest.mark.parametrize(
    ("allowed", "seen", "code", "retry", "cause"),
    [
        (1, 1, 201, None, ""),
        (0, 1, 429, None, "The disruption budget b needs 2 healthy pods and has 1 currently"),
        (1, 0, 429, "10", "The disruption budget b is still being processed by the server."),
    ],
)
def test_eviction_respects_the_budget(
    api: Client, namespace: str, allowed: int, seen: int, code: int, retry: str | None, cause: str
) -> None:
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    selector = {"matchLabels": {"a": "b"}}
    api.must("POST", budgets, {"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": selector}})
    counted = {"disruptionsAllowed": allowed, "desiredHealthy": 2, "currentHealthy": 1}
    api.patch(f"{budgets}/b/status", {"status": {**counted, "observedGeneration": seen}})
    path = PODS.format(namespace)
    body = pod("p", nodeName="n1")
    body["metadata"]["labels"] = {"a": "b"}
    api.must("POST", path, body)
    api.patch(f"{path}/p/status", {"status": {"phase": "Running"}})
    body = {"metadata": {"name": "p"}, "kind": "Eviction", "deleteOptions": {"dryRun": ["All"]}}
    assert api.send("POST", f"{path}/p/eviction", body).status_code == code
    assert api.must("GET", f"{budgets}/b")["status"].get("disruptionsAllowed", 0) == allowed
    body["deleteOptions"] = {"preconditions": {"uid": "another"}}
    assert api.send("POST", f"{path}/p/eviction", body).status_code == 409
    version = api.must("GET", f"{path}/p")["metadata"]["resourceVersion"]
    body["deleteOptions"] = {"preconditions": {"resourceVersion": version}}
    answered = api.send("POST", f"{path}/p/eviction", body)
    assert answered.status_code == code
    if code == 201:
        assert api.must("GET", f"{budgets}/b")["status"]["disruptionsAllowed"] == 0
        gone = api.must("GET", f"{path}/p")
        assert "deletionTimestamp" in gone["metadata"]
        reasons = {c["type"]: c.get("reason") for c in gone["status"]["conditions"]}
        assert reasons["DisruptionTarget"] == "EvictionByEvictionAPI"
    else:
        refused = answered.json()
        assert refused["message"] == "Cannot evict pod as it would violate the pod's disruption budget."
        assert refused["details"]["causes"] == [{"reason": "DisruptionBudget", "message": cause}]
    assert answered.headers.get("Retry-After") == retry


def test_nobody_can_say_which_of_two_budgets_an_eviction_is_to_ask(api: Client, namespace: str) -> None:
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    for name in ("a", "b"):
        api.must("POST", budgets, {"metadata": {"name": name}, "spec": {"minAvailable": 0, "selector": {}}})
    path = PODS.format(namespace)
    api.must("POST", path, pod("p", nodeName="n1"))
    api.patch(f"{path}/p/status", {"status": {"phase": "Running"}})
    answered = api.send("POST", f"{path}/p/eviction", {"metadata": {"name": "p"}, "kind": "Eviction"})
    assert answered.status_code == 500
    assert answered.json()["message"].startswith("This pod has more than one PodDisruptionBudget, ")
    assert "deletionTimestamp" not in api.must("GET", f"{path}/p")["metadata"]


@pytest.mark.parametrize(
    ("policy", "healthy", "code"),
    [("IfHealthyBudget", 1, 201), ("IfHealthyBudget", 0, 429), ("AlwaysAllow", 0, 201)],
)
def test_a_pod_that_is_not_ready_may_go_where_enough_others_are(
    api: Client, namespace: str, policy: str, healthy: int, code: int
) -> None:
    budgets = f"/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {}, "unhealthyPodEvictionPolicy": policy}
    api.must("POST", budgets, {"metadata": {"name": "b"}, "spec": spec})
    status = {"observedGeneration": 1, "desiredHealthy": 1, "currentHealthy": healthy}
    api.patch(f"{budgets}/b/status", {"status": status})
    path = PODS.format(namespace)
    api.must("POST", path, pod("p", nodeName="n1"))
    api.patch(f"{path}/p/status", {"status": {"phase": "Running"}})
    body = {"metadata": {"name": "p"}, "kind": "Eviction", "apiVersion": "policy/v1beta1"}
    assert api.send("POST", f"{path}/p/eviction", body).status_code == code


def test_delete_collection_takes_what_the_selector_matches(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    for name, label in (("a", "x"), ("b", "x"), ("c", "y")):
        api.must("POST", path, {"metadata": {"name": name, "labels": {"l": label}}})
    deleted = api.must("DELETE", f"{path}?labelSelector=l%3Dx")
    assert [item["metadata"]["name"] for item in deleted["items"]] == ["a", "b"]
    assert [item["metadata"]["name"] for item in api.must("GET", path)["items"]] == ["c"]


def test_unknown_fields_are_refused_warned_of_or_dropped(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    body = {**config("a"), "extra": 1}
    code, status = api("POST", f"{path}?fieldValidation=Strict", body)
    assert code == 400 and 'unknown field "extra"' in status["message"]
    answered = api.send("POST", path, body)
    assert answered.headers["Warning"] == '299 - "unknown field \\"extra\\""'
    assert "extra" not in answered.json()
    answered = api.send("PUT", f"{path}/a?fieldValidation=Ignore", body)
    assert answered.status_code == 200 and "Warning" not in answered.headers


def test_events_are_one_kind_under_two_groups(api: Client, namespace: str) -> None:
    body = {
        "metadata": {"name": "e"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace},
        "reason": "Started",
        "message": "m",
        "type": "Normal",
    }
    api.must("POST", f"/api/v1/namespaces/{namespace}/events", body)
    new = api.must("GET", f"/apis/events.k8s.io/v1/namespaces/{namespace}/events")
    assert new["items"][0]["regarding"]["name"] == "p" and new["items"][0]["note"] == "m"
    found = api.must("GET", f"/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.name%3Dp")
    assert len(found["items"]) == 1


def test_server_side_apply_creates_keeps_account_and_conflicts(api: Client, namespace: str) -> None:
    path = f"{CONFIG.format(namespace)}/a"
    yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata: {{k: '{}'}}\n"
    kind = "application/apply-patch+yaml"

    def apply(manager: str, value: str, more: str = "") -> Any:
        body = yaml.format(value).encode()
        return api.send("PATCH", f"{path}?fieldManager={manager}{more}", body, Content_Type=kind)

    made = apply("one", "1")
    assert made.status_code == 201 and made.json()["metadata"]["managedFields"][0]["manager"] == "one"
    again = apply("one", "1")
    assert again.json()["metadata"]["resourceVersion"] == made.json()["metadata"]["resourceVersion"]
    refused = apply("two", "2")
    assert refused.status_code == 409
    assert refused.json()["details"]["causes"][0]["field"] == ".data.k"
    assert apply("two", "2", "&force=true").json()["data"] == {"k": "2"}
    assert api.send("PATCH", path, yaml.format("3").encode(), Content_Type=kind).status_code == 422
    owners = {item["manager"] for item in api.patch(path, {"data": {"k": "4"}})["metadata"]["managedFields"]}
    assert "python-requests" in owners
    assert apply("two", "2").status_code == 409


@pytest.mark.parametrize(("expected", "said"), [("100-continue", 100), ("a-miracle", 417)])
def test_who_asks_before_sending_a_body_is_answered_first(
    api: Client, namespace: str, expected: str, said: int
) -> None:
    body = json.dumps({"metadata": {"name": "asked"}}).encode()
    address, context = urlsplit(api.base), ssl.create_default_context(cafile=api.ca)
    context.load_cert_chain(*(api.cert or ()))
    head = f"POST /api/v1/namespaces/{namespace}/configmaps HTTP/1.1\r\nHost: {address.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nExpect: {expected}\r\n\r\n"
    with (
        socket.create_connection((address.hostname or "", address.port or 0), timeout=10) as plain,
        context.wrap_socket(plain, server_hostname=address.hostname) as server,
        server.makefile("rb") as answers,
    ):
        server.sendall(head.encode())
        assert answers.readline().split()[1] == str(said).encode()
        if said == 100:
            assert answers.readline() == b"\r\n"
            server.sendall(body)
            assert answers.readline().split()[1] == b"201"


@pytest.mark.parametrize("value", ["true", "1.0"])
def test_a_patch_to_what_python_calls_equal_is_still_checked(api: Client, namespace: str, value: str) -> None:
    path = DEPLOYMENTS.format(namespace)
    assert api.must("POST", path, deployment("web"))["spec"]["replicas"] == 1
    body = f'{{"spec": {{"replicas": {value}}}}}'.encode()
    code, answered = api("PATCH", f"{path}/web", body, Content_Type=MERGE)
    assert code == 400 and "cannot unmarshal" in answered["message"]
    api.must("DELETE", f"{path}/web")
