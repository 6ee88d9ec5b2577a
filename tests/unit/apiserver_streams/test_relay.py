"""The API server's relay between real sockets: a client, aiohttp in the middle, a kubelet behind."""

from __future__ import annotations

import asyncio
import http.client
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from aiohttp import web

from controlplane.apiserver import streams

Serve = Callable[[socket.socket], None]


class Kubelet:
    """Accepts connections on loopback and does with each what the test says."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.serve: Serve = lambda connection: None
        self.heads: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(connection,), daemon=True).start()

    def _one(self, connection: socket.socket) -> None:
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            self.heads.append(head)
            self.serve(connection)

    def close(self) -> None:
        self._listener.close()


class Middle:
    """An aiohttp server in a thread; everything is relayed to the kubelet."""

    def __init__(self, kubelet: Kubelet) -> None:
        self.kubelet, self.port = kubelet, 0
        self.target = kubelet.port
        self._loop = asyncio.new_event_loop()
        ready = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(5)

    def _run(self, ready: threading.Event) -> None:

        async def main() -> None:
            self._stop = asyncio.Event()
            application = web.Application()
            application.router.add_route("*", "/{rest:.*}", self._handle)
            runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.runner = runner
            self.port = runner.addresses[0][1]
            ready.set()
            await self._stop.wait()
            await runner.cleanup()

        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(main())

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        upgrade = "upgrade" in request.headers.get("Connection", "").lower()
        forward = streams.proxy_upgrade if upgrade else streams.proxy_http
        try:
            return await forward(
                request,
                host="127.0.0.1",
                port=self.target,
                path="/exec/a b",
                query=[("command", "x&y")],
                ssl=None,
            )
        except streams.NodeUnreachable as error:
            return web.Response(status=502, text=str(error))

    def open_connections(self) -> int:
        server = self.runner.server
        assert server is not None
        return len(server.connections)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


@pytest.fixture
def kubelet() -> Iterator[Kubelet]:
    made = Kubelet()
    yield made
    made.close()


@pytest.fixture
def middle(kubelet: Kubelet) -> Iterator[Middle]:
    made = Middle(kubelet)
    yield made
    made.stop()


SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4\r\n\r\n"


def connect(middle: Middle) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", middle.port), 10)
    client.sendall(
        b"POST /exec HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
        b"Authorization: Bearer s\r\nCookie: c\r\nContent-Length: 0\r\n"
        b"X-Stream-Protocol-Version: v4\r\nX-Stream-Protocol-Version: v3\r\n\r\n"
    )
    return client


def read_until(client: socket.socket, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end) and (piece := client.recv(65536)):
        data += piece
    return data


def echo(connection: socket.socket) -> None:
    connection.sendall(SWITCH + b"early")
    while data := connection.recv(65536):
        connection.sendall(data)


def test_bytes_pass_both_ways_and_credentials_stay(kubelet: Kubelet, middle: Middle) -> None:
    """I02, K07: the client's token is for the API server alone."""
    kubelet.serve = echo
    with connect(middle) as client:
        assert read_until(client, b"early") == SWITCH + b"early"
        client.sendall(b"GET /not-http \x00\xff\r\n\r\n")
        assert read_until(client, b"\r\n\r\n") == b"GET /not-http \x00\xff\r\n\r\n"
    head = kubelet.heads[0].decode()
    assert head.startswith("POST /exec/a%20b?command=x%26y HTTP/1.1\r\n")
    assert head.count("X-Stream-Protocol-Version") == 2 and "Upgrade: SPDY/3.1" in head
    assert "Authorization" not in head and "Cookie" not in head


def test_much_passes_at_once_in_both_directions(kubelet: Kubelet, middle: Middle) -> None:
    kubelet.serve = echo
    sent = bytes(range(256)) * 20_000
    with connect(middle) as client:
        read_until(client, b"early")
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        received = b""
        while len(received) < len(sent):
            received += client.recv(65536)
        sender.join()
    assert received == sent


def test_what_the_kubelet_says_last_arrives_before_the_end(kubelet: Kubelet, middle: Middle) -> None:
    last = b"x" * 3_000_000

    def serve(connection: socket.socket) -> None:
        connection.sendall(SWITCH + last)

    kubelet.serve = serve
    with connect(middle) as client:
        data = b""
        while piece := client.recv(65536):
            data += piece
    assert data == SWITCH + last


def test_a_half_close_of_the_client_is_passed_on(kubelet: Kubelet, middle: Middle) -> None:
    def serve(connection: socket.socket) -> None:
        connection.sendall(SWITCH)
        data = b""
        while piece := connection.recv(65536):
            data += piece
        connection.sendall(b"got " + data)

    kubelet.serve = serve
    with connect(middle) as client:
        read_until(client, SWITCH)
        client.sendall(b"input")
        client.shutdown(socket.SHUT_WR)
        assert read_until(client, b"input") == b"got input"


def test_a_client_that_goes_closes_the_kubelets_side_and_leaves_nothing(
    kubelet: Kubelet, middle: Middle
) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(SWITCH)
        while connection.recv(65536):
            pass
        ended.set()

    kubelet.serve = serve
    with connect(middle) as client:
        read_until(client, SWITCH)
    assert ended.wait(5)
    for _ in range(500):
        if middle.open_connections() == 0:
            break
        threading.Event().wait(0.01)
    assert middle.open_connections() == 0


def test_a_refusal_of_the_kubelet_is_passed_on_whole(kubelet: Kubelet, middle: Middle) -> None:
    kubelet.serve = lambda connection: connection.sendall(
        b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n"
        b"X-Accepted-Stream-Protocol-Versions: v4\r\n\r\nnot allowed\n"
    )
    with connect(middle) as client:
        text = read_until(client, b"not allowed\n")
    assert text.startswith(b"HTTP/1.1 403") and b"x-accepted-stream-protocol-versions: v4" in text.lower()
    assert text.endswith(b"\r\n\r\nnot allowed\n")


@pytest.mark.parametrize("answer", [b"", b"garbage\r\n\r\n", b"HTTP/1.1 101"])
def test_a_kubelet_that_talks_nonsense_is_unreachable(
    kubelet: Kubelet, middle: Middle, answer: bytes
) -> None:
    kubelet.serve = lambda connection: connection.sendall(answer)
    with connect(middle) as client:
        assert b"error dialing backend" in read_until(client, b"HTTP")


def test_a_kubelet_that_is_not_there_is_named(kubelet: Kubelet, middle: Middle) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        middle.target = free.getsockname()[1]
    with connect(middle) as client:
        text = read_until(client, b"refused").decode()
    assert f"error dialing backend: dial tcp 127.0.0.1:{middle.target}: connect: connection refused" in text


def test_plain_answers_stream_as_they_come(kubelet: Kubelet, middle: Middle) -> None:
    go_on = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(b"4\r\none\n\r\n")
        go_on.wait(5)
        connection.sendall(b"4\r\ntwo\n\r\n0\r\n\r\n")

    kubelet.serve = serve
    client = http.client.HTTPConnection("127.0.0.1", middle.port, timeout=10)
    client.request("GET", "/log", headers={"Authorization": "Bearer s"})
    answer = client.getresponse()
    assert answer.readline() == b"one\n"
    go_on.set()
    assert answer.read() == b"two\n"
    client.close()
    assert b"Authorization" not in kubelet.heads[0]


def test_a_client_that_leaves_a_silent_stream_closes_the_kubelets_side(
    kubelet: Kubelet, middle: Middle
) -> None:
    ended = threading.Event()

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nx\n\r\n")
        connection.recv(1)
        ended.set()

    kubelet.serve = serve
    client = http.client.HTTPConnection("127.0.0.1", middle.port, timeout=10)
    client.request("GET", "/log")
    assert client.getresponse().readline() == b"x\n"
    client.sock.close()
    client.close()
    assert ended.wait(5)
