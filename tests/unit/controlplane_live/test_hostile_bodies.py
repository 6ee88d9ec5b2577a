"""Bodies and parameters made to hurt: each gets its refusal, quickly, and the server goes on."""

from __future__ import annotations

import http.client
import json
import ssl
from itertools import pairwise
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from controlplane.apiserver import calls

from .conftest import MERGE, STRATEGIC, Client, Live, pod

MAPS = "/api/v1/namespaces/default/configmaps"
YAML = "application/yaml"
JSON_PATCH = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"
# Nine lines that stand for 9⁹ words.
BOMB = "a: &a [lol]\n"
BOMB += "".join(f"{b}: &{b} [{','.join(9 * ['*' + a])}]\n" for a, b in pairwise("abcdefghij"))


def nested(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


@pytest.fixture(scope="module")
def victim(live: Live) -> str:
    live.admin.must("POST", MAPS, {"metadata": {"name": "victim"}, "data": {"a": "x" * 1000}})
    return f"{MAPS}/victim"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (BOMB, "excessive aliasing"),
        ("a: &a [*a]", "exceeded max depth"),
        ("a: &a {<<: *a}", "exceeded max depth"),
        ("[" * 3000, "depth"),
    ],
)
def test_yaml_that_stands_for_more_than_it_is_long(api: Client, victim: str, body: str, said: str) -> None:
    for method, path, kind in (("POST", MAPS, YAML), ("PATCH", f"{victim}?fieldManager=me", APPLY)):
        code, status = api(method, path, body.encode(), Content_Type=kind)
        assert (code, status["reason"]) == (400, "BadRequest")
        assert said in status["message"]


def test_an_alias_as_people_use_it(api: Client) -> None:
    body = b"metadata:\n  name: aliased\n  labels: &l {a: b}\n  annotations:\n    <<: *l\n    c: d\n"
    made = api.must("POST", MAPS, body, Content_Type=YAML)
    assert made["metadata"]["annotations"] == {"a": "b", "c": "d"}


@pytest.mark.parametrize("depth", [200, 300, 900, 1500])
def test_what_is_nested_deeply(api: Client, victim: str, depth: int) -> None:
    deep = nested(depth)
    for kind, body in (
        (MERGE, f'{{"metadata":{{"annotations":{deep}}}}}'),
        (STRATEGIC, f'{{"metadata":{{"annotations":{deep}}}}}'),
        (JSON_PATCH, f'[{{"op":"add","path":"/metadata/annotations","value":{deep}}}]'),
        (JSON_PATCH, f'[{{"op":"test","path":"/metadata","value":{deep}}}]'),
    ):
        code, status = api("PATCH", victim, body.encode(), Content_Type=kind)
        assert code in (400, 422), status
    revision = f'{{"metadata":{{"name":"deep-{depth}"}},"revision":1,"data":{deep}}}'.encode()
    code, status = api("POST", "/apis/apps/v1/namespaces/default/controllerrevisions", revision)
    assert code == (201 if depth == 200 else 400), status
    # An account that a client sends is not taken over, but has to be read.
    for body in (deep, f'{{"metadata":{{"name":"d","managedFields":[{{"fieldsV1":{deep}}}]}}}}'):
        code, status = api("POST", f"{MAPS}?dryRun=All", body.encode())
        assert code in (201, 400, 422), status


def test_copies_that_double_each_time_are_stopped(api: Client, victim: str) -> None:
    ops = [{"op": "copy", "from": "/data", "path": f"/data/c{number}"} for number in range(60)]
    code, status = api("PATCH", victim, ops, Content_Type=JSON_PATCH)
    assert (code, status["reason"]) == (413, "RequestEntityTooLarge")
    assert "the accumulated size increase of copy is" in status["message"]
    into_itself = [{"op": "copy", "from": "", "path": "/data/a"} for _ in range(400)]
    code, status = api("PATCH", victim, into_itself, Content_Type=JSON_PATCH)
    assert code in (400, 413), status


def test_numbers_that_are_none(api: Client, victim: str) -> None:
    op = [{"op": "remove", "path": "/metadata/finalizers/²"}]
    api.must("PATCH", victim, {"metadata": {"finalizers": ["a.example/b"]}}, Content_Type=MERGE)
    assert api("PATCH", victim, op, Content_Type=JSON_PATCH)[0] == 422
    assert api.send("GET", f"{MAPS}?watch=1&timeoutSeconds={quote('²')}&resourceVersion=x").status_code == 400


def test_a_manager_has_a_name_that_can_be_printed(api: Client) -> None:
    for name, said in (("x" * 129, "Too long: may not be more than 128 bytes"), ("a%0ab", "printable")):
        code, status = api("POST", f"{MAPS}?fieldManager={name}", {"metadata": {"name": "managed"}})
        assert (code, status["details"]["causes"][0]["field"]) == (422, "fieldManager")
        assert said in status["message"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("resourceVersion=1&resourceVersionMatch=Nearly", "resourceVersionMatch"),
        ("resourceVersion=0&resourceVersionMatch=Exact", "resourceVersionMatch"),
        ("continue=x&resourceVersion=1&resourceVersionMatch=Exact", "resourceVersionMatch"),
        ("sendInitialEvents=true", "sendInitialEvents"),
        ("watch=1&sendInitialEvents=true", "resourceVersionMatch"),
        ("watch=1&resourceVersionMatch=NotOlderThan", "resourceVersionMatch"),
        ("watch=1&sendInitialEvents=true&resourceVersionMatch=Exact", "resourceVersionMatch"),
    ],
)
def test_parameters_that_do_not_go_together(api: Client, query: str, field: str) -> None:
    code, status = api("GET", f"{MAPS}?{query}")
    assert (code, status["reason"], status["details"]["kind"]) == (422, "Invalid", "ListOptions")
    assert {cause["field"] for cause in status["details"]["causes"]} == {field}


def test_a_watch_from_nonsense_is_refused_before_it_begins(api: Client) -> None:
    code, status = api("GET", f"{MAPS}?watch=1&resourceVersion=abc")
    assert (code, status["reason"]) == (400, "BadRequest")


def test_one_object_at_a_revision_that_is_not_written_yet(api: Client, victim: str) -> None:
    code, status = api("GET", f"{victim}?resourceVersion=99999999")
    assert (code, status["reason"]) == (504, "Timeout")


def test_answers_that_people_read_come_in_lines(api: Client, victim: str) -> None:
    def lines(query: str = "", **headers: str) -> int:
        text = api.send("GET", f"{victim}{query}", **headers).text
        assert json.loads(text)["kind"] in ("ConfigMap", "Status")
        return text.strip().count("\n")

    assert lines("?pretty=true") > 5 and lines(User_Agent="curl/8.0") > 5
    assert lines() == 0 and lines("?pretty=false", User_Agent="curl/8.0") == 0
    assert lines("-gone?pretty=1") > 5, "a refusal too"
    listed = api.send("GET", f"{MAPS}?pretty=1").text
    assert listed.startswith('{\n  "kind": "ConfigMapList",')


def test_a_long_answer_in_yaml(api: Client) -> None:
    import yaml

    made: dict[str, Any] = {"metadata": {"name": "long"}, "data": {f"k{n}": "v" * 20 for n in range(2000)}}
    api.must("POST", MAPS, made)
    answered = api.send("GET", f"{MAPS}/long", Accept=YAML)
    assert answered.headers["Content-Type"].startswith(YAML)
    assert yaml.safe_load(answered.text)["data"] == made["data"]


def test_a_strategic_merge_of_many_items_keeps_nobody_waiting(api: Client, victim: str) -> None:
    """Each item was looked for among all others: minutes for 3 MB, in which nobody was served."""
    owners = [{"uid": f"{number:06}"} for number in range(150_000)]
    code, status = api("PATCH", victim, {"metadata": {"ownerReferences": owners}}, Content_Type=STRATEGIC)
    assert (code, status["reason"]) == (422, "Invalid")
    api.must("POST", MAPS, {"metadata": {"name": "ordered"}})
    names = [f"a/{number:06}" for number in range(100_000)]
    order = {"metadata": {"$setElementOrder/finalizers": names, "finalizers": names}}
    ordered = api.patch(f"{MAPS}/ordered?dryRun=All", order, STRATEGIC)
    assert len(ordered["metadata"]["finalizers"]) == len(names)
    order = {"metadata": {"$setElementOrder/finalizers": 5, "finalizers": ["a/b"]}}
    assert api("PATCH", victim, order, Content_Type=STRATEGIC)[0] == 400


def test_endless_refusals_are_cut(api: Client) -> None:
    """A million causes took 20 s and more than a gigabyte."""
    owners = [{} for _ in range(300_000)]
    code, status = api("POST", MAPS, {"metadata": {"name": "refused", "ownerReferences": owners}})
    assert (code, status["reason"]) == (422, "Invalid")
    assert "more than 10000 places, the first: metadata.ownerReferences[0]" in status["message"]


def test_endless_warnings_are_cut(api: Client) -> None:
    """Each unknown field was a header; a hundred thousand took a minute, and no client reads them."""
    body = {"metadata": {"name": "warned"}, **{f"{number:0300}": 1 for number in range(9_000)}}
    answer = api.send("POST", f"{MAPS}?dryRun=All", body)
    assert answer.status_code == 201
    assert 3000 < len(answer.headers["Warning"]) < 8192
    assert answer.headers["Warning"].startswith(f'299 - "unknown field \\"{"0" * 200}')


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (f"{MAPS}?resourceVersion={'9' * 4000}", 400),
        (f"{MAPS}?resourceVersion=1_0", 400),
        (f"{MAPS}?resourceVersion=-0", 400),
        (f"{MAPS}?watch=1&resourceVersion={'9' * 4000}", 400),
        (f"{MAPS}?limit=1&continue=eyJydiI6MTAwMDAwMDAwMDAwMCwic3RhcnQiOiJhXHUwMDAwIn0", 410),
        (f"{MAPS}?limit=1&continue=eyJydiI6MWUzMDAsInN0YXJ0IjoiYSJ9", 400),
        ("/api/v1/namespaces/default/pods/long/log?tailLines=--5", 400),
        (f"/api/v1/namespaces/default/pods/long/log?tailLines={'9' * 5000}", 400),
        (f"/api/v1/namespaces/default/pods/long:{'9' * 5000}/proxy/", 400),
        ("/api/v1/namespaces/default/pods/long:99999/proxy/", 400),
    ],
)
def test_numbers_that_nobody_can_mean(api: Client, path: str, code: int) -> None:
    """Two of them were a page of a state to come; the others an error of the server's own."""
    if api("GET", "/api/v1/namespaces/default/pods/long")[0] == 404:
        api.must("POST", "/api/v1/namespaces/default/pods", pod("long"))
    assert api("GET", path)[0] == code


def test_a_watch_of_endless_seconds_is_one(api: Client, victim: str) -> None:
    for digits in (400, 5000):
        assert api.first_events(f"{MAPS}?timeoutSeconds={'9' * digits}&resourceVersion=0", 1)


def test_numbers_in_bodies_that_nobody_can_mean(api: Client, victim: str) -> None:
    digits = "9" * 5000
    ops = [
        {"op": "add", "path": "/metadata/finalizers", "value": ["a/b"]},
        {"op": "test", "path": f"/metadata/finalizers/{digits}", "value": 1},
    ]
    assert api("PATCH", victim, ops, Content_Type=JSON_PATCH)[0] == 422
    budget = {"metadata": {"name": "b"}, "spec": {"minAvailable": f"{digits}%", "selector": {}}}
    path = "/apis/policy/v1/namespaces/default/poddisruptionbudgets"
    assert api("POST", path, budget)[0] == 422
    # creationTimestamp, 2⁶² seconds after 1970
    body = bytes.fromhex("6b3873000a0f0a02763112") + b"\x09ConfigMap" + bytes.fromhex("120e0a0c420a08")
    body += b"\x80\x80\x80\x80\x80\x80\x80\x80\x40"
    assert api("POST", MAPS, body, Content_Type="application/vnd.kubernetes.protobuf")[0] == 400


def test_a_token_of_other_letters_is_refused(live: Live) -> None:
    answer = live.anonymous.session.get(
        f"{live.base}{MAPS}", headers={"Authorization": b"Bearer \xff\xfe.a.b"}, timeout=10
    )
    assert answer.status_code == 401


def test_a_body_that_does_not_come_is_not_waited_for_without_end(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BODY_SECONDS", 0.2)
    assert live.admin.cert is not None
    context = ssl.create_default_context(cafile=live.admin.ca)
    context.load_cert_chain(*live.admin.cert)
    connection = http.client.HTTPSConnection(urlsplit(live.base).netloc, context=context, timeout=20)
    try:
        connection.putrequest("POST", MAPS)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", "100")
        connection.endheaders(b'{"metadata":')
        answer = connection.getresponse()
        status = json.loads(answer.read())
    finally:
        connection.close()
    assert (answer.status, status["reason"]) == (504, "Timeout")
    assert status["message"] == "Timeout: request did not complete within the allotted timeout"
