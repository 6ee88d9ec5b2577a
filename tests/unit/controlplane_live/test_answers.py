"""What an answer looks like on the wire, for each kind of client that HTTP/1.1 knows."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import HTTPResponse
from urllib.parse import urlsplit

import pytest

from tests.unit.controlplane_live.conftest import Client, Live

PATH = "/api/v1/namespaces/default"


@dataclass
class Wire:
    """One connection, on which requests are written by hand."""

    sock: ssl.SSLSocket

    def ask(self, method: str, *headers: str, version: str = "1.1", path: str = PATH) -> HTTPResponse:
        lines = [f"{method} {path} HTTP/{version}", "Host: x", "User-Agent: test", *headers]
        self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        response = HTTPResponse(self.sock, method=method)
        response.begin()
        return response


@pytest.fixture
def wire(live: Live) -> Iterator[Wire]:
    context = ssl.create_default_context(cafile=live.admin.ca)
    assert live.admin.cert is not None
    context.load_cert_chain(*live.admin.cert)
    parts = urlsplit(live.base)
    plain = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=10)
    with context.wrap_socket(plain, server_hostname=parts.hostname) as sock:
        yield Wire(sock)


def test_answer_has_the_headers_that_clients_look_for(wire: Wire) -> None:
    response = wire.ask("GET")
    body = response.read()
    headers = {name: response.headers[name] for name in ("Content-Type", "Cache-Control", "Content-Length")}
    length = str(len(body))
    expected = {"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
    assert (response.status, response.reason) == (200, "OK")
    assert headers == expected | {"Content-Length": length}
    assert parsedate_to_datetime(response.headers["Date"]).utcoffset() is not None


def test_head_tells_the_length_and_sends_nothing_so_that_the_connection_goes_on(wire: Wire) -> None:
    length = wire.ask("HEAD").headers["Content-Length"]
    assert len(wire.ask("GET").read()) == int(length) > 0


@pytest.mark.parametrize(
    ("version", "asked", "said", "stays"),
    [
        ("1.1", "", None, True),
        ("1.1", "Connection: close", "close", False),
        ("1.0", "", None, False),
        ("1.0", "Connection: keep-alive", "keep-alive", True),
    ],
)
def test_connection_stays_for_those_who_want_it(
    wire: Wire, version: str, asked: str, said: str | None, stays: bool
) -> None:
    response = wire.ask("GET", *filter(None, [asked]), version=version)
    response.read()
    assert response.headers["Connection"] == said
    if stays:
        assert wire.ask("GET").status == 200
    else:
        assert wire.sock.recv(1) == b""


def test_refusals_have_their_code_and_reason(wire: Wire) -> None:
    response = wire.ask("GET", path="/api/v1/namespaces/none")
    assert (response.status, response.reason) == (404, "Not Found")
    assert b'"reason":"NotFound"' in response.read()


def test_names_of_unknown_fields_cannot_end_a_header(api: Client, namespace: str) -> None:
    body = {"metadata": {"name": "odd"}, "da\r\nX-Made: up": "1", 'qu"ote\\': "2"}
    answer = api.send("POST", f"/api/v1/namespaces/{namespace}/configmaps", body)
    assert answer.status_code == 201 and "X-Made" not in answer.headers
    assert 'unknown field \\"da\\r\\nX-Made: up\\"' in answer.headers["Warning"]
    assert 'unknown field \\"qu\\"ote\\\\\\"' in answer.headers["Warning"]
