"""Hooks: what is asked of an HTTP server, what counts as done, what a failure says."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any, cast

import pytest

from kubelet_py.pods import hooks
from runtime.service import RuntimeService

CONTAINER = {"name": "c", "ports": [{"name": "web", "containerPort": 0}]}


class Service:
    """Executes nothing: answers with a code."""

    def __init__(self, code: int) -> None:
        self.code = code

    def exec_sync(self, container_id: str, argv: list[str], timeout: float | None) -> Any:
        return type("Result", (), {"exit_code": self.code, "stdout": b"said ", "stderr": b"no"})


def run(hook: dict[str, Any], *, container: dict[str, Any] | None = None, code: int = 0, **more: Any) -> None:
    service = cast(RuntimeService, Service(code))
    hooks.run(service, hook, container or CONTAINER, "x", "127.0.0.1", timeout=5.0, **more)


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    """Answers every GET with 500 and keeps what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.server.asked = (self.path, dict(self.headers))  # type: ignore[attr-defined]
            self.send_error(500)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listener
        listener.shutdown()
        thread.join()


def test_an_http_hook_is_done_when_it_is_answered_whatever_the_status(server: HTTPServer) -> None:
    headers = [{"name": "X-Who", "value": "me"}]
    container = {"name": "c", "ports": [{"name": "web", "containerPort": server.server_port}]}
    run({"httpGet": {"port": "web", "path": "/hello?x=1", "httpHeaders": headers}}, container=container)
    path, given = server.asked  # type: ignore[attr-defined]
    assert (path, given["X-Who"], given["User-Agent"]) == ("/hello?x=1", "me", "kube-lifecycle/1.32")


def test_a_failure_says_why() -> None:
    with pytest.raises(hooks.HookFailed, match=r"dial tcp 127\.0\.0\.1:1: connect: connection refused"):
        run({"httpGet": {"port": 1}})
    with pytest.raises(hooks.HookFailed, match="couldn't find port: nope in container c"):
        run({"httpGet": {"port": "nope"}})
    with pytest.raises(hooks.HookFailed, match="command 'false' exited with 3: no, message: \"said no\""):
        run({"exec": {"command": ["false"]}}, code=3)
    with pytest.raises(hooks.HookFailed, match="no handler"):
        run({"tcpSocket": {"port": 1}})


@pytest.mark.parametrize(
    ("hook", "text"),
    [
        ({"exec": {"command": ["sh", "-c", "exit 7"]}}, "Exec lifecycle hook ([sh -c exit 7]) for "),
        ({"httpGet": {"path": "/up", "port": 1}}, "HTTP lifecycle hook (/up) for "),
        ({"sleep": {"seconds": 3}}, "Sleep lifecycle hook (3) for "),
    ],
)
def test_a_failure_is_told_in_upstreams_words(hook: dict[str, Any], text: str) -> None:
    where = 'Container "c" in Pod "p_default(u)" failed - error: why'
    assert hooks.told(hook, CONTAINER, "p_default(u)", "why") == text + where


def test_a_sleep_ends_with_the_grace_at_the_latest() -> None:
    slept: list[float] = []
    for seconds in (3, 60):
        run({"sleep": {"seconds": seconds}}, sleep=slept.append)
    assert slept == [3.0, 5.0]
