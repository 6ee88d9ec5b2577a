"""Lists, watches and the forms of an answer, through the real server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from .conftest import TABLE, Client, Live, pod

CONFIG = "/api/v1/namespaces/{}/configmaps"


def make(api: Client, namespace: str, name: str, **labels: str) -> dict[str, Any]:
    body = {"metadata": {"name": name, "labels": labels}}
    made: dict[str, Any] = api.must("POST", CONFIG.format(namespace), body)
    return made


def names(listed: dict[str, Any]) -> list[str]:
    return [item["metadata"]["name"] for item in listed["items"]]


def test_pages_of_a_list_show_one_state_whatever_happens_between(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    for name in "abcde":
        make(api, namespace, name)
    first = api.must("GET", f"{path}?limit=2")
    assert names(first) == ["a", "b"] and first["metadata"]["remainingItemCount"] == 3
    api.must("DELETE", f"{path}/d")
    make(api, namespace, "bb")
    second = api.must("GET", f"{path}?limit=2&continue={first['metadata']['continue']}")
    third = api.must("GET", f"{path}?limit=2&continue={second['metadata']['continue']}")
    assert (names(second), names(third)) == (["c", "d"], ["e"])
    assert "continue" not in third["metadata"]
    assert third["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]
    exact = f"{path}?resourceVersion={first['metadata']['resourceVersion']}&resourceVersionMatch=Exact"
    assert names(api.must("GET", exact)) == list("abcde")
    assert names(api.must("GET", path)) == ["a", "b", "bb", "c", "e"]


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        ("continue=nonsense", 400, "continue key is not valid"),
        ("resourceVersion=x", 400, "invalid syntax"),
        ("resourceVersion=99999999", 504, "Too large resource version"),
        ("labelSelector=a+in+(", 400, ""),
        ("fieldSelector=spec.foo%3Dx", 400, "field label not supported: spec.foo"),
        ("resourceVersionMatch=Exact", 422, "resourceVersionMatch"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(api: Client, query: str, code: int, text: str) -> None:
    answered, status = api("GET", f"/api/v1/pods?{query}")
    assert answered == code and text in status["message"]


def test_label_and_field_selectors(api: Client, namespace: str) -> None:
    for name, app in (("a", "x"), ("b", "y")):
        make(api, namespace, name, app=app)
    path = CONFIG.format(namespace)
    assert names(api.must("GET", f"{path}?labelSelector=app+in+(x)")) == ["a"]
    assert names(api.must("GET", f"{path}?fieldSelector=metadata.name%3Db")) == ["b"]
    pods = f"/api/v1/namespaces/{namespace}/pods"
    api.must("POST", pods, pod("free"))
    api.must("POST", pods, pod("bound", nodeName="n1"))
    assert names(api.must("GET", f"{pods}?fieldSelector=spec.nodeName%3D")) == ["free"]
    running = "spec.nodeName%3Dn1,status.phase!%3DFailed"
    assert names(api.must("GET", f"{pods}?fieldSelector={running}")) == ["bound"]


def test_a_watch_replays_what_came_after_its_version(api: Client, namespace: str) -> None:
    first = make(api, namespace, "a")
    make(api, namespace, "b")
    path = CONFIG.format(namespace)
    api.patch(f"{path}/b", {"data": {"k": "v"}})
    api.must("DELETE", f"{path}/b")
    version = first["metadata"]["resourceVersion"]
    events = api.first_events(f"{path}?resourceVersion={version}", 3)
    assert [event["type"] for event in events] == ["ADDED", "MODIFIED", "DELETED"]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) for event in events]
    assert versions == sorted(versions) and versions[0] > int(version)


def test_a_watch_without_a_version_begins_with_what_is_there(api: Client, namespace: str) -> None:
    make(api, namespace, "a")
    for query in ("", "resourceVersion=0"):
        events = api.first_events(f"{CONFIG.format(namespace)}?{query}", 1)
        assert [(event["type"], event["object"]["metadata"]["name"]) for event in events] == [("ADDED", "a")]


def test_an_object_that_ceases_to_match_is_deleted_for_that_watch(api: Client, namespace: str) -> None:
    path = CONFIG.format(namespace)
    version = make(api, namespace, "a", app="x")["metadata"]["resourceVersion"]
    api.patch(f"{path}/a", {"metadata": {"labels": {"app": "y"}}})
    api.patch(f"{path}/a", {"metadata": {"labels": {"app": "x"}}})
    events = api.first_events(f"{path}?labelSelector=app%3Dx&resourceVersion={version}", 2)
    assert [event["type"] for event in events] == ["DELETED", "ADDED"]
    assert events[0]["object"]["metadata"]["labels"] == {"app": "x"}


def test_initial_events_end_with_a_bookmark(api: Client, namespace: str) -> None:
    make(api, namespace, "a")
    query = "sendInitialEvents=true&allowWatchBookmarks=true&resourceVersionMatch=NotOlderThan"
    events = api.first_events(f"{CONFIG.format(namespace)}?{query}", 2)
    assert [event["type"] for event in events] == ["ADDED", "BOOKMARK"]
    assert events[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}


def test_a_watch_from_the_future_must_start_from_a_list(api: Client) -> None:
    event = api.first_events("/api/v1/pods?resourceVersion=99999999", 1)[0]
    assert event["type"] == "ERROR" and event["object"]["code"] == 410
    assert event["object"]["reason"] == "Expired"


def test_a_watch_ends_at_its_timeout_with_a_bookmark(api: Client, namespace: str) -> None:
    version = make(api, namespace, "a")["metadata"]["resourceVersion"]
    query = f"resourceVersion={version}&allowWatchBookmarks=true"
    events = api.events(f"{CONFIG.format(namespace)}?{query}", 1)
    assert [event["type"] for event in events] == ["BOOKMARK"]


def test_tables_for_lists_single_objects_and_watches(api: Client, namespace: str) -> None:
    pods = f"/api/v1/namespaces/{namespace}/pods"
    api.must("POST", pods, pod("p"))
    listed = api.must("GET", pods, Accept=TABLE)
    assert listed["kind"] == "Table" and listed["rows"][0]["cells"][:3] == ["p", "0/1", "Pending"]
    assert listed["rows"][0]["object"]["kind"] == "PartialObjectMetadata"
    single = api.must("GET", f"{pods}/p?includeObject=Object", Accept=TABLE)
    assert single["rows"][0]["object"]["kind"] == "Pod"
    api.must("POST", pods, pod("q"))
    events = api.events(f"{pods}?resourceVersion=0", 1, Accept=TABLE)
    assert [event["object"]["rows"][0]["cells"][0] for event in events] == ["p", "q"]
    assert events[0]["object"]["columnDefinitions"] and not events[1]["object"].get("columnDefinitions")


def test_metadata_only(api: Client, namespace: str) -> None:
    make(api, namespace, "a")
    accept = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
    listed = api.must("GET", CONFIG.format(namespace), Accept=accept)
    assert listed["kind"] == "PartialObjectMetadataList"
    assert set(listed["items"][0]) == {"kind", "apiVersion", "metadata"}


def test_yaml_in_and_yaml_out(api: Client, namespace: str) -> None:
    body = b"metadata: {name: a}\ndata: {day: '2026-01-01', word: x}\n"
    path = CONFIG.format(namespace)
    made = api.send("POST", path, body, Content_Type="application/yaml", Accept="application/yaml")
    assert made.status_code == 201 and made.headers["Content-Type"].startswith("application/yaml")
    assert "word: x" in made.text
    assert api.must("GET", f"{path}/a")["data"] == {"day": "2026-01-01", "word": "x"}


@pytest.mark.parametrize(
    ("method", "path", "body", "kind", "code", "reason"),
    [
        ("POST", "/configmaps", b"{bad", "application/json", 400, "BadRequest"),
        ("POST", "/configmaps", b"[]", "application/json", 400, "BadRequest"),
        ("POST", "/configmaps", b"a: [", "application/yaml", 400, "BadRequest"),
        ("POST", "/configmaps", b"x", "text/plain", 415, "UnsupportedMediaType"),
        ("PATCH", "/configmaps/kube-root-ca.crt", b"x", "text/plain", 415, "UnsupportedMediaType"),
        ("POST", "/pods", b'{"kind":"Service","apiVersion":"v1"}', "application/json", 400, "BadRequest"),
        ("POST", "/pods", b'{"metadata":{"namespace":"else","name":"x"}}', "", 400, "BadRequest"),
        ("POST", "/pods", b'{"metadata":{"name":"x"},"spec":{"containers":"x"}}', "", 400, "BadRequest"),
        ("POST", "/pods", b'{"metadata":{"name":"x"},"spec":{}}', "", 422, "Invalid"),
        ("POST", "/configmaps", b" " * (3 << 20) + b"{}", "application/json", 413, "RequestEntityTooLarge"),
        ("PUT", "/configmaps", b"{}", "application/json", 405, "MethodNotAllowed"),
        ("GET", "/nonsense", None, "", 404, "NotFound"),
    ],
)
def test_bad_requests_get_upstreams_answers(
    api: Client, method: str, path: str, body: bytes | None, kind: str, code: int, reason: str
) -> None:
    headers = {"Content_Type": kind} if kind else {}
    answered = api.send(method, f"/api/v1/namespaces/default{path}", body, **headers)
    status = json.loads(answered.content)
    assert (answered.status_code, status["reason"], status["code"]) == (code, reason, code)


def test_paths_outside_every_group_are_plain_404(api: Client) -> None:
    answered = api.send("GET", "/apis/nobody.example/v1/things")
    assert (answered.status_code, answered.text) == (404, "404 page not found\n")


def test_whoever_asks_whether_a_kind_is_somebodys_own_hears_that_none_is(api: Client) -> None:
    group = "/apis/apiextensions.k8s.io/v1"
    code, body = api("GET", f"{group}/customresourcedefinitions?limit=500")
    assert (code, body["kind"], body["items"]) == (200, "CustomResourceDefinitionList", [])
    assert api("POST", f"{group}/customresourcedefinitions", {})[0] == 405
    code, body = api("GET", f"{group}/customresourcedefinitions?watch=1")
    assert (code, body["kind"], body["reason"]) == (405, "Status", "MethodNotAllowed"), "a list is no stream"
    assert api.send("GET", group).status_code == 404, "no discovery tells of it"


def test_anonymous_may_ask_for_health_and_version_only(live: Live) -> None:
    for path in ("/healthz", "/livez", "/readyz?verbose", "/version", "/version/"):
        assert live.anonymous.send("GET", path).status_code == 200
    for path in ("/api", "/api/v1/pods", "/openapi/v2", "/versions"):
        code, status = live.anonymous("GET", path)
        assert (code, status["reason"]) == (403, "Forbidden") and 'User "system:anonymous" cannot' in status[
            "message"
        ]


def test_the_first_objects_of_a_cluster(api: Client) -> None:
    found = names(api.must("GET", "/api/v1/namespaces"))
    assert {"default", "kube-system", "kube-public", "kube-node-lease"} <= set(found)
    place = "/api/v1/namespaces/default"
    assert api.must("GET", f"{place}/services/kubernetes")["spec"]["clusterIP"] == "10.96.0.1"
    subset = api.must("GET", f"{place}/endpoints/kubernetes")["subsets"][0]
    assert subset["addresses"] == [{"ip": "192.0.2.1"}]
    assert api.must("GET", f"{place}/serviceaccounts/default")
