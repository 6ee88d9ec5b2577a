"""A small API server of the standard library: answers what a test put into its table, over plain HTTP."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest

from kubeclient.kubeconfig import ClientConfig
from kubeclient.rest import RestClient

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


class FakeApi(ThreadingHTTPServer):
    """`routes`: (method, path without query) → a function that answers; `seen`: every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[tuple[str, str], Answer] = {}
        self.seen: list[tuple[str, str, bytes, dict[str, str]]] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def json(self, method: str, path: str, body: Any, code: int = 200, **headers: str) -> None:
        def answer(request: BaseHTTPRequestHandler, _: bytes) -> None:
            reply(request, code, orjson.dumps(body), headers)

        self.routes[method, path] = answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: FakeApi

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, body, dict(self.headers)))
        self.server.routes[self.command, self.path.partition("?")[0]](self, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any

    def log_message(self, *_: Any) -> None:
        pass


def reply(
    request: BaseHTTPRequestHandler, code: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    request.send_response(code)
    for name, value in (headers or {}).items():
        request.send_header(name.replace("_", "-"), value)
    request.send_header("Content-Length", str(len(body)))
    request.end_headers()
    request.wfile.write(body)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def client(api: FakeApi) -> Iterator[RestClient]:
    made = RestClient(ClientConfig(server=api.url), timeout=5.0)
    yield made
    made.close()
