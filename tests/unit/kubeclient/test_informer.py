from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler

import orjson

from kubeclient.informer import Informer
from kubeclient.resources import PODS

PATH = "/api/v1/pods"


def pod(name: str, version: str, uid: str = "u") -> dict[str, object]:
    return {"metadata": {"name": name, "namespace": "d", "uid": uid + name, "resourceVersion": version}}


class Script:
    """Answers lists and watches one after the other as told; the last watch stays open until `over`."""

    def __init__(self, lists: list, watches: list) -> None:
        self.lists, self.watches = lists, watches
        self.over = threading.Event()
        self.from_versions: list[str] = []

    def __call__(self, request: BaseHTTPRequestHandler, _: bytes) -> None:
        if "watch=" not in request.path:
            version, items = self.lists.pop(0)
            body = orjson.dumps({"metadata": {"resourceVersion": version}, "items": items})
            request.send_response(200)
            request.send_header("Content-Length", str(len(body)))
            request.end_headers()
            request.wfile.write(body)
            return
        self.from_versions.append(request.path.partition("resourceVersion=")[2].partition("&")[0])
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for kind, obj in self.watches.pop(0) if self.watches else []:
            line = orjson.dumps({"type": kind, "object": obj}) + b"\n"
            request.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            request.wfile.flush()
        if not self.watches:
            self.over.wait(5)
        request.wfile.write(b"0\r\n\r\n")
        request.close_connection = True


def follow(api, client, script: Script, count: int) -> tuple[list[tuple[str, str]], Informer]:
    api.routes["GET", PATH] = script
    events: list[tuple[str, str]] = []
    enough = threading.Event()

    def handle(kind, new, old) -> None:
        events.append((kind, new["metadata"]["name"]))
        if len(events) >= count:
            enough.set()

    informer = Informer(client, PODS, on_event=handle)
    informer.start()
    assert enough.wait(5), events
    informer.stop()
    script.over.set()
    return events, informer


def test_the_copy_follows_list_and_watch(api, client) -> None:
    script = Script(
        [("5", [pod("a", "4"), pod("b", "5")])],
        [[("MODIFIED", pod("a", "6")), ("DELETED", pod("b", "7")), ("ADDED", pod("c", "8"))]],
    )
    events, informer = follow(api, client, script, 5)
    assert events == [("ADDED", "a"), ("ADDED", "b"), ("MODIFIED", "a"), ("DELETED", "b"), ("ADDED", "c")]
    assert informer.wait_synced(0)
    assert sorted(p["metadata"]["name"] for p in informer.list()) == ["a", "c"]
    assert informer.get("a", "d")["metadata"]["resourceVersion"] == "6"


def test_a_watch_that_ended_goes_on_where_it_was_bookmarks_included(api, client) -> None:
    bookmark = {"metadata": {"resourceVersion": "20"}}
    script = Script([("5", [])], [[("BOOKMARK", bookmark)], [("ADDED", pod("a", "21"))]])
    follow(api, client, script, 1)
    assert script.from_versions == ["5", "20"]


def test_lost_history_is_made_up_for_by_a_new_list(api, client) -> None:
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
    script = Script(
        [
            ("5", [pod("a", "4"), pod("b", "5"), pod("c", "5")]),
            ("9", [pod("b", "8"), pod("c", "9", "other")]),
        ],
        [[("ERROR", gone)], []],
    )
    events, _ = follow(api, client, script, 7)
    assert events[3:] == [("DELETED", "a"), ("MODIFIED", "b"), ("DELETED", "c"), ("ADDED", "c")]


def test_a_handler_that_fails_does_not_end_the_informer(api, client, caplog) -> None:
    script = Script([("5", [pod("a", "4"), pod("b", "5")])], [[]])
    api.routes["GET", PATH] = script

    def handle(kind, new, old) -> None:
        raise RuntimeError("a defect")

    informer = Informer(client, PODS, on_event=handle)
    informer.start()
    assert informer.wait_synced(5)
    informer.stop()
    script.over.set()
    assert [p["kind"] for p in informer.list()] == ["Pod", "Pod"]  # lists leave it out of their items
    assert "a defect" in caplog.text


def test_identities_come_in_pages_and_are_all_that_the_copy_keeps(api, client) -> None:
    pages = {"": ([{**pod("a", "4"), "spec": {"x": 1}}], "two"), "two": ([pod("b", "5")], "")}
    asked: list[str] = []
    over = threading.Event()

    def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
        if "watch=" in request.path:
            request.send_response(200)
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            over.wait(5)
            request.wfile.write(b"0\r\n\r\n")
            request.close_connection = True
            return
        asked.append(request.path)
        items, follows = pages[request.path.partition("continue=")[2].partition("&")[0]]
        body = orjson.dumps({"metadata": {"resourceVersion": "9", "continue": follows}, "items": items})
        request.send_response(200)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    api.routes["GET", PATH] = answer
    seen: list[dict] = []
    informer = Informer(client, PODS, on_event=lambda kind, new, old: seen.append(new), identities_only=True)
    informer.start()
    assert informer.wait_synced(5)
    informer.stop()
    over.set()
    assert len(asked) == 2 and all("limit=500" in path for path in asked)
    assert [obj["metadata"]["name"] for obj in seen] == ["a", "b"]
    assert seen[0]["spec"] == {"x": 1} and seen[0]["kind"] == "Pod"
    assert informer.get("a", "d") == pod("a", "4")


def test_an_answer_of_no_known_shape_does_not_end_the_informer(api, client, caplog) -> None:
    nameless = {"metadata": {"resourceVersion": "6"}}
    script = Script([("5", []), ("7", [pod("a", "7")])], [[("ADDED", nameless)]])
    events, _ = follow(api, client, script, 1)
    assert events == [("ADDED", "a")]
    assert "Failed to follow kind=pods" in caplog.text
