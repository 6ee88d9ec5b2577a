from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler

import orjson
import pytest

from kubeclient.errors import (
    AlreadyExists,
    ApiError,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    NotFound,
    ServerUnavailable,
    TooManyRequests,
)
from kubeclient.kubeconfig import ClientConfig
from kubeclient.resources import DEPLOYMENTS, NODES, PODS
from kubeclient.rest import RestClient

PATH = "/api/v1/namespaces/default/pods"


def chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
    request.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
    request.wfile.flush()


def start_chunks(request: BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("Transfer-Encoding", "chunked")
    request.end_headers()


def status(code: int, reason: str, **more: object) -> dict[str, object]:
    return {"kind": "Status", "status": "Failure", "message": "no", "reason": reason, "code": code, **more}


def event(kind: str, name: str, version: str) -> bytes:
    return orjson.dumps({"type": kind, "object": {"metadata": {"name": name, "resourceVersion": version}}})


@pytest.mark.parametrize(
    ("code", "reason", "error"),
    [
        (403, "Forbidden", Forbidden),
        (404, "NotFound", NotFound),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict),
        (410, "Expired", Gone),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", TooManyRequests),
        (503, "ServiceUnavailable", ServerUnavailable),
    ],
)
def test_a_refusal_becomes_its_exception(api, client, code, reason, error) -> None:
    api.json("GET", f"{PATH}/a", status(code, reason), code)
    with pytest.raises(error) as caught:
        client.get(PODS, "a", "default")
    assert (caught.value.code, caught.value.reason, caught.value.message) == (code, reason, "no")


def test_retry_after_is_taken_from_the_header(api, client) -> None:
    api.json("GET", f"{PATH}/a", status(429, "TooManyRequests"), 429, Retry_After="7")
    with pytest.raises(TooManyRequests) as caught:
        client.get(PODS, "a", "default")
    assert caught.value.retry_after == 7


def test_a_page_that_is_no_status_keeps_its_text(api, client) -> None:
    api.json("GET", f"{PATH}/a", "a proxy's page", 502)
    with pytest.raises(ServerUnavailable, match="a proxy's page"):
        client.get(PODS, "a", "default")


def test_a_page_that_says_yes_and_is_no_object_is_no_answer(api, client) -> None:
    def page(request: BaseHTTPRequestHandler, _: bytes) -> None:
        start_chunks(request)
        chunk(request, b"<html>Log in first</html>")
        chunk(request, b"")

    api.routes["GET", f"{PATH}/a"] = page
    with pytest.raises(ServerUnavailable, match=f"Could not read the answer to GET {PATH}/a"):
        client.get(PODS, "a", "default")


def test_every_exchange_is_observed_with_its_code(api) -> None:
    seen: list[tuple[str, int]] = []
    api.json("GET", f"{PATH}/a", status(404, "NotFound"), 404)
    client = RestClient(
        ClientConfig(server=api.url), observe=lambda method, code, seconds: seen.append((method, code))
    )
    with pytest.raises(NotFound):
        client.get(PODS, "a", "default")
    api.json("GET", "/api/v1/namespaces/old/pods", status(410, "Expired"), 410)
    with pytest.raises(Gone):
        client.watch(PODS, "old", resource_version="1")
    client.close()
    unreachable = RestClient(
        ClientConfig(server="http://127.0.0.1:1"),
        observe=lambda method, code, seconds: seen.append((method, code)),
    )
    with pytest.raises(ServerUnavailable):
        unreachable.create(PODS, {"metadata": {"name": "a"}}, "default")
    assert seen == [("GET", 404), ("GET", 410), ("POST", 0)]


def test_nobody_listening_is_server_unavailable() -> None:
    client = RestClient(ClientConfig(server="http://127.0.0.1:1"))
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1"):
        client.get(PODS, "a", "default")


def test_one_connection_serves_many_requests(api, client) -> None:
    api.json("GET", "/api/v1/nodes/n", {"kind": "Node"})
    for _ in range(5):
        client.get(NODES, "n")
    assert api.connections == 1


def test_an_idle_connection_that_the_server_closed_is_replaced_even_for_a_post(api, client) -> None:
    closed = threading.Event()

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        request.send_response(201)
        request.send_header("Content-Length", "2")
        request.end_headers()
        request.wfile.write(b"{}")
        request.wfile.flush()
        request.close_connection = True  # without saying so
        request.connection.shutdown(2)
        closed.set()

    api.routes["POST", PATH] = answer
    client.create(PODS, {"metadata": {"name": "a"}}, "default")
    assert closed.wait(5)
    client.create(PODS, {"metadata": {"name": "a"}}, "default")
    assert len(api.seen) == 2


def test_environment_proxies_are_ignored(api, client, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    api.json("GET", "/api/v1/nodes/n", {"kind": "Node"})
    assert client.get(NODES, "n") == {"kind": "Node"}


def test_delete_sends_its_options(api, client) -> None:
    api.json("DELETE", f"{PATH}/a", {"kind": "Status"})
    client.delete(
        PODS,
        "a",
        "default",
        grace_period_seconds=0,
        uid="u",
        resource_version="5",
        propagation_policy="Orphan",
    )
    assert orjson.loads(api.seen[0][2]) == {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "gracePeriodSeconds": 0,
        "preconditions": {"uid": "u", "resourceVersion": "5"},
        "propagationPolicy": "Orphan",
    }


@pytest.mark.parametrize(
    ("kind", "media"),
    [
        ("strategic", "application/strategic-merge-patch+json"),
        ("merge", "application/merge-patch+json"),
        ("json", "application/json-patch+json"),
    ],
)
def test_patches_name_their_kind(api, client, kind, media) -> None:
    path = "/apis/apps/v1/namespaces/x/deployments/d/scale"
    api.json("PATCH", path, {})
    client.patch(DEPLOYMENTS, "d", {"a": None}, "x", subresource="scale", kind=kind)
    assert api.seen[0][3]["Content-Type"] == media
    assert api.seen[0][2] == b'{"a":null}'


def test_list_passes_selectors_and_pages(api, client) -> None:
    api.json("GET", "/api/v1/pods", {"metadata": {"resourceVersion": "9"}, "items": None})
    fields = "spec.nodeName=n"
    found = client.list(PODS, label_selector="a in (b,c)", field_selector=fields, limit=3, continue_="t")
    assert found["items"] == []
    query = api.seen[0][1].partition("?")[2]
    assert query == "labelSelector=a+in+%28b%2Cc%29&fieldSelector=spec.nodeName%3Dn&limit=3&continue=t"


def test_a_name_cannot_leave_its_place_in_the_path() -> None:
    assert PODS.path("a/b", "../c") == "/api/v1/namespaces/a%2Fb/pods/..%2Fc"


def test_a_watch_hands_over_each_event_before_the_next_one_comes(api, client) -> None:
    proceed = threading.Event()

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        start_chunks(request)
        one = event("ADDED", "a", "1") + b"\n"
        chunk(request, one[:10])
        chunk(request, one[10:])
        assert proceed.wait(5)
        chunk(request, event("MODIFIED", "a", "2") + b"\n" + event("DELETED", "a", "3") + b"\n")
        chunk(request, b"")

    api.routes["GET", PATH] = answer
    watch = client.watch(PODS, "default", resource_version="0")
    events = iter(watch)
    assert next(events).type == "ADDED"  # would hang if it waited for more bytes
    proceed.set()
    assert [e.type for e in events] == ["MODIFIED", "DELETED"]


def test_closing_a_watch_wakes_its_reader(api, client) -> None:
    release = threading.Event()

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        start_chunks(request)
        chunk(request, event("ADDED", "a", "1") + b"\n")
        release.wait(5)
        request.close_connection = True

    api.routes["GET", PATH] = answer
    watch = client.watch(PODS, "default", resource_version="0")
    first = threading.Event()
    seen: list[str] = []

    def read() -> None:
        for each in watch:
            seen.append(each.type)
            first.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert first.wait(5)
    watch.close()
    thread.join(2)
    release.set()
    assert not thread.is_alive()
    assert seen == ["ADDED"]


@pytest.mark.parametrize("code", [410, 500])
def test_an_error_event_raises(api, client, code) -> None:
    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        start_chunks(request)
        refusal = status(code, "Expired" if code == 410 else "X")
        chunk(request, orjson.dumps({"type": "ERROR", "object": refusal}))
        chunk(request, b"\n")
        chunk(request, b"")

    api.routes["GET", PATH] = answer
    with pytest.raises(Gone if code == 410 else ApiError):
        list(client.watch(PODS, "default", resource_version="1"))


def test_a_watch_that_breaks_off_says_so(api, client) -> None:
    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        start_chunks(request)
        chunk(request, event("ADDED", "a", "1") + b"\n")
        request.wfile.write(b"ff\r\n{")
        request.close_connection = True

    api.routes["GET", PATH] = answer
    events = iter(client.watch(PODS, "default", resource_version="1"))
    assert next(events).type == "ADDED"
    with pytest.raises(ServerUnavailable):
        next(events)
