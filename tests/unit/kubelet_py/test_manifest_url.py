"""Manifests from an address: asked, with its headers, and configured."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubelet_py.config import Config, from_document
from kubelet_py.errors import ConfigError
from kubelet_py.flags import parse_arguments
from kubelet_py.pods import manifest_url
from kubelet_py.pods.manifest_url import ManifestUrl
from kubelet_py.pods.manifests import Manifest


def pod(name: str = "web") -> dict[str, Any]:
    containers = [{"name": "c", "image": "busybox"}]
    return {"kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers}}


class Answers:
    """What a server says, one after the other; None: it is away."""

    def __init__(self, *bodies: str | None) -> None:
        self.bodies = [*bodies]

    def __call__(self, url: str, headers: Any) -> bytes:
        body = self.bodies.pop(0)
        if body is None:
            raise OSError("connection refused")
        return body.encode()


def test_an_address_is_asked_and_only_good_answers_count() -> None:
    told: list[list[str]] = []
    one, two = json.dumps(pod("one")), json.dumps(pod("two"))
    none = json.dumps({"kind": "PodList", "items": []})
    answers = Answers(None, one, one, None, "", "{}", two, none)

    def changed(manifest: Manifest) -> None:
        told.append([p["metadata"]["name"] for p in manifest.pods.values()])

    asked = ManifestUrl("http://h/m", {}, "n1", changed, period=60, fetch=answers)
    while answers.bodies:
        asked.look()
    assert told == [["one-n1"], ["two-n1"], []]


@pytest.fixture
def server() -> Iterator[tuple[str, list[Any]]]:
    """A real server that remembers the headers it got; /gone answers 404."""
    got: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append(self.headers)
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()
            self.wfile.write(json.dumps(pod()).encode())

        def log_message(self, format: str, *arguments: Any) -> None:
            return

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_address[1]}", got
    made.shutdown()
    made.server_close()


def test_headers_are_sent_and_an_error_is_none_of_a_pod(server: tuple[str, list[Any]]) -> None:
    url, got = server
    body = manifest_url.fetch(f"{url}/pods", {"X-Node": ["n1"], "X-More": ["a", "b"]})
    assert json.loads(body) == pod()
    assert (got[0]["X-Node"], got[0]["X-More"]) == ("n1", "a, b")
    with pytest.raises(OSError, match="404"):
        manifest_url.fetch(f"{url}/gone", {})


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "k.json"
    file.write_text(json.dumps({"staticPodURL": "http://file/", "httpCheckFrequency": "5s"}))
    argv = ["--config", str(file), "--manifest-url", "https://flag/", "--manifest-url-header", "a:b,c:d"]
    config = parse_arguments([*argv, "--manifest-url-header", "a:e"]).config
    assert (config.static_pod_url, config.http_check_frequency) == ("https://flag/", 5.0)
    assert config.static_pod_url_header == {"a": ["b", "e"], "c": ["d"]}
    assert Config().http_check_frequency == 20.0


@pytest.mark.parametrize(
    "document",
    [
        {"staticPodURL": "ftp://x/"}, {"staticPodURLHeader": {"a": "b"}},
        {"staticPodURLHeader": {"a": ["b\r\nc"]}}, {"httpCheckFrequency": 20},
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(document))):
        from_document(document)
