"""HTTP of probes and hooks, against servers that do what servers do: redirect, drip, speak TLS or do not."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from kubelet_py.pods import hooks, http_get, probes
from runtime.service import RuntimeService

CONTAINER = {"name": "c"}


class Handler(BaseHTTPRequestHandler):
    """/to?URL redirects there; everything else answers 200 with `body`."""

    server: Any

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers))
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
        else:
            self.send_response(503 if self.path == "/sick" else 200)
        self.end_headers()
        with contextlib.suppress(OSError):  # the other side has read enough
            self.wfile.write(self.server.body)

    def log_message(self, *_: object) -> None:
        return


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Any]:
    made: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked, made.body = [], b"body"
    if context:
        made.socket = context.wrap_socket(made.socket, server_side=True)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


@pytest.fixture
def server() -> Iterator[Any]:
    with serving() as made:
        yield made


@pytest.fixture
def raw() -> Iterator[Callable[[Callable[[socket.socket], None]], int]]:
    """`raw(talk)` → the port of a server that says `talk` to whoever connects."""
    listeners = []

    def start(talk: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def work() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client, contextlib.suppress(OSError):
                    talk(client)

        threading.Thread(target=work, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def probe(port: int, timeout: float = 10, **action: Any) -> probes.Outcome:
    return probes.http_get({"port": port, **action}, CONTAINER, "127.0.0.1", timeout)


def test_a_redirect_within_the_host_is_followed_to_what_counts(server: Any) -> None:
    port = server.server_port
    assert probe(port, path="/to?/ok") == probes.Outcome(True)
    assert probe(port, path="/to?/sick").text == "HTTP probe failed with statuscode: 503"
    assert probe(port, path=f"/to?http://127.0.0.1:{port}/sick").success is False


def test_a_redirect_to_another_host_is_not_followed_and_told_of(server: Any) -> None:
    found = probe(server.server_port, path=f"/to?http://localhost:{server.server_port}/sick")
    assert found == probes.Outcome(True, "Probe terminated redirects, Response body: body", warning=True)
    assert len(server.asked) == 1


def test_a_circle_of_redirects_ends(server: Any) -> None:
    inner = "/to?" * 20
    assert "stopped after 10 redirects" in probe(server.server_port, path=f"{inner}/ok").text


def test_headers_are_the_pods_with_upstreams_defaults(server: Any) -> None:
    given = [("Host", "name.example"), ("X-A", "1"), ("X-A", "2"), ("Accept", ""), ("user-agent", "mine")]
    headers = [{"name": name, "value": value} for name, value in given]
    assert probe(server.server_port, path="q?x=1", httpHeaders=headers).success
    assert probe(server.server_port).success
    (path, own), (_, plain) = server.asked
    assert (path, own["Host"], own.get_all("X-A"), own["User-Agent"]) == (
        "/q?x=1",
        "name.example",
        ["1", "2"],
        "mine",
    )
    assert "Accept" not in own
    assert (plain["User-Agent"], plain["Accept"], plain["Connection"]) == ("kube-probe/1.32", "*/*", "close")
    assert plain["Host"] == f"127.0.0.1:{server.server_port}" and "Accept-Encoding" not in plain


def test_no_more_than_10_kib_of_an_answer_are_read(server: Any) -> None:
    server.body = b"x" * 10_000_000
    request = http_get.request_of({"port": server.server_port}, CONTAINER, "127.0.0.1", "probe")
    assert len(http_get.get(request, 10).body) == 10 * 1024


def test_a_server_that_drips_gets_no_more_than_the_timeout(raw: Any) -> None:
    def drip(client: socket.socket) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            client.sendall(b"x")
            time.sleep(0.02)

    began = time.monotonic()
    found = probe(raw(drip), timeout=0.3)
    assert found.success is False and "context deadline exceeded" in found.text
    assert time.monotonic() - began < 30  # for ever, without


def test_failures_are_told_in_gos_words(raw: Any) -> None:
    def hang_up(client: socket.socket) -> None:
        client.recv(1000)

    with socket.create_server(("127.0.0.1", 0)) as free:
        closed = free.getsockname()[1]
    url = f'Get "http://127.0.0.1:{closed}/": '
    assert probe(closed).text == f"{url}dial tcp 127.0.0.1:{closed}: connect: connection refused"
    found = probes.tcp_socket({"port": closed}, CONTAINER, "127.0.0.1", 5)
    assert found.text == f"dial tcp 127.0.0.1:{closed}: connect: connection refused"
    assert probe(raw(hang_up)).text.endswith(": EOF")
    assert "couldn't find port: web" in probes.http_get({"port": "web"}, CONTAINER, "127.0.0.1", 5).text


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's context with a certificate that nobody vouches for, for another name, long over."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "other.example")])
    begin = datetime.datetime(2001, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(begin + datetime.timedelta(1))
    file: Path = tmp_path_factory.mktemp("tls") / "server.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


def test_https_looks_at_no_certificate(tls: ssl.SSLContext) -> None:
    with serving(tls) as server:
        assert probe(server.server_port, scheme="HTTPS").success
        assert probe(server.server_port, scheme="HTTPS", path="/sick").success is False


def test_a_probe_by_https_of_a_server_without_fails(server: Any) -> None:
    found = probe(server.server_port, scheme="HTTPS")
    assert found.text.endswith("http: server gave HTTP response to HTTPS client")


def run_hook(port: int, told: list[tuple[str, str]]) -> None:
    headers = [{"name": "Authorization", "value": "secret"}, {"name": "X-Who", "value": "me"}]
    hook = {"httpGet": {"port": port, "scheme": "HTTPS", "path": "/bye", "httpHeaders": headers}}
    service = cast(RuntimeService, None)
    hooks.run(
        service, hook, CONTAINER, "x", "127.0.0.1", timeout=10.0, warn=lambda *words: told.append(words)
    )


def test_a_hook_by_https_falls_back_to_http_without_the_authorization(server: Any) -> None:
    told: list[tuple[str, str]] = []
    run_hook(server.server_port, told)
    [(path, headers)] = server.asked
    assert (path, headers["X-Who"], headers["Authorization"]) == ("/bye", "me", None)
    text = "request to HTTPS lifecycle hook got HTTP response, retry with HTTP succeeded"
    assert told == [("LifecycleHTTPFallback", text)]


def test_a_hook_that_tls_answers_does_not_fall_back(tls: ssl.SSLContext) -> None:
    told: list[tuple[str, str]] = []
    with serving(tls) as server:
        run_hook(server.server_port, told)
        assert server.asked[0][1]["Authorization"] == "secret"
    assert told == []


def test_a_hook_fails_where_nobody_speaks_either(raw: Any) -> None:
    def babble(client: socket.socket) -> None:
        client.recv(1000)
        client.sendall(b"SMTP at your service\r\n")

    with pytest.raises(hooks.HookFailed):
        run_hook(raw(babble), [])
