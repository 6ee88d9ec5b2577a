"""One HTTP GET against a server that is a plain socket, so that it can say anything."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kubelet_py.pods import http_answer, probes
from kubelet_py.pods.http_answer import NoAnswer

LONG = 30.0
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CONTAINER = {"name": "c", "ports": [{"name": "web", "containerPort": 1}]}


class Server:
    """Answers one request with `pieces`; then closes the connection, or keeps it open."""

    def __init__(self, pieces: list[bytes], *, stays: bool) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.asked = b""
        self._pieces, self._stays = pieces, stays
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self.listener.accept()
        with connection, contextlib.suppress(ConnectionError):
            while b"\r\n\r\n" not in self.asked:
                self.asked += connection.recv(4096)
            for piece in self._pieces:
                connection.sendall(piece)
                if self._over.wait(0.02):
                    return
            if self._stays:
                self._over.wait(LONG)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self.listener.close()


@contextlib.contextmanager
def server(*pieces: bytes, stays: bool = False) -> Iterator[Server]:
    made = Server([*pieces], stays=stays)
    try:
        yield made
    finally:
        made.close()


def ask(made: Server, timeout: float = LONG) -> int:
    message = http_answer.request(f"127.0.0.1:{made.port}", "/", ())
    return http_answer.status("127.0.0.1", made.port, message, timeout, tls=False)


@pytest.mark.parametrize(
    ("pieces", "stays", "code"),
    [
        ((b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",), True, 200),
        ((b"HTTP/1.", b"0 404 Not", b" Found\r\nServer: x\r", b"\n\r\n", b"no"), False, 404),
        ((b"HTTP/1.1 204 No Content\r\n\r\n",), True, 204),
        ((b"HTTP/1.1 200\r\ncontent-length:0\r\n\r\n",), True, 200),
        ((b"HTTP/1.0 200 OK\n\nbare line ends",), False, 200),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n"), True, 503),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n\r\n"), True, 200),
        ((b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x\r\n\r\n",), True, 200),
        ((CHUNKED + b"3;a=b\r\n0\r\n\r\n1\r\nx\r\n0\r\n", b"A: b\r\n", b"\r\n"), True, 200),
        ((CHUNKED + b"0\n0\n\n",), False, 200),
        ((CHUNKED + b"no size\r\n\r\n0\r\n\r\n",), False, 200),
        ((CHUNKED + b"ffffffffffffffff\r\nx",), False, 200),
        ((b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\nok",), False, 200),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b"x" * http_answer.MOST_BODY), True, 200),
    ],
)
def test_the_status_is_told_when_the_answer_is_whole(
    pieces: tuple[bytes, ...], stays: bool, code: int
) -> None:
    with server(*pieces, stays=stays) as made:
        assert ask(made) == code


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ((), "EOF"),
        ((b"SSH-2.0-OpenSSH_9.2\r\n\r\n",), 'malformed HTTP response "SSH-2.0-OpenSSH_9.2"'),
        ((b"HTTP/1.1 two OK\r\n\r\n",), 'malformed HTTP response "HTTP/1.1 two OK"'),
        ((b"HTTP/1.1 200 OK\r\n" + b"x" * http_answer.MOST_HEAD,), "response headers exceeded"),
    ],
)
def test_what_is_no_answer_is_said(pieces: tuple[bytes, ...], text: str) -> None:
    with server(*pieces) as made, pytest.raises(NoAnswer, match=text):
        ask(made)


def test_chunks_that_could_end_anywhere_do_not_hold_up_the_agent() -> None:
    """Searched from each line that could be the last chunk, each piece took eight seconds, and every other
    thread of the agent waited."""
    for _ in range(20):
        assert not http_answer._Ending(200, CHUNKED).reached(b"\n0" * 5120)


def test_a_chunk_is_not_read_again_for_each_byte_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 kB of the smallest chunks, a byte at a time, took the agent six seconds."""
    looks = 0
    size = http_answer._CHUNK_SIZE

    class Counted:
        def match(self, body: bytes, place: int) -> re.Match[bytes] | None:
            nonlocal looks
            looks += 1
            return size.match(body, place)

    monkeypatch.setattr(http_answer, "_CHUNK_SIZE", Counted())
    body = b"1\na\n" * 200 + b"0\n\n"
    ending = http_answer._Ending(200, CHUNKED)
    assert [ending.reached(body[:end]) for end in range(len(body))] == [False] * len(body)
    assert ending.reached(body)
    assert looks <= 2 * len(body)


def test_the_head_is_not_searched_again_for_each_byte_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 kB of head, a byte at a time, took the agent twenty seconds."""
    searched = 0
    ends = http_answer._HEAD_ENDS

    class Counted:
        def search(self, data: bytes, place: int = 0) -> re.Match[bytes] | None:
            nonlocal searched
            searched += len(data) - place
            return ends.search(data, place)

    monkeypatch.setattr(http_answer, "_HEAD_ENDS", Counted())
    for line_end in (b"\r\n", b"\n"):
        early, late = (b"HTTP/1.1 %d A" % code + (line_end + b"B: c") * 50 for code in (103, 204))
        answer = early + line_end * 2 + late + line_end * 2
        with contextlib.ExitStack() as stack:
            ours, theirs = (stack.enter_context(each) for each in socket.socketpair())
            theirs.sendall(answer)
            monkeypatch.setattr(http_answer, "_receive", lambda _channel, _end, s=ours: s.recv(1))
            assert http_answer._read(ours, 0.0)[0] == 204
        assert searched <= 4 * len(answer)
        searched = 0


def test_a_server_that_sends_a_byte_now_and_then_is_not_waited_for_without_end() -> None:
    with server(*[b"H"] * 500) as made:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            ask(made, 0.2)
        assert time.monotonic() - begun < 5, "500 bytes take 10 s"


def test_the_request_is_one_that_upstream_would_send() -> None:
    with server(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as made:
        headers = [{"name": "X-Twice", "value": "1"}, {"name": "X-Twice", "value": "2"}]
        action = {"port": made.port, "path": "/a b?c=d", "httpHeaders": headers}
        assert probes.http_get(action, CONTAINER, "127.0.0.1", LONG).success
    lines = made.asked.decode().split("\r\n")
    assert lines[0] == "GET /a%20b?c=d HTTP/1.1" and f"Host: 127.0.0.1:{made.port}" in lines
    assert {"X-Twice: 1", "X-Twice: 2", "Connection: close"} <= set(lines)
    assert any(line.startswith("User-Agent: kube-probe/") for line in lines)


def test_headers_of_the_probe_win() -> None:
    message = http_answer.request("10.0.0.1:80", "x", [("host", "web.example"), ("Accept", "text/plain")])
    assert message == (
        b"GET /x HTTP/1.1\r\nConnection: close\r\nhost: web.example\r\nAccept: text/plain\r\n\r\n"
    )
    with pytest.raises(NoAnswer, match="invalid header field value for 'X'"):
        http_answer.request("h", "/", [("X", "1\r\nY: 2")])


def test_outcomes_carry_upstreams_texts() -> None:
    with server(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n") as made:
        failed = probes.http_get({"port": made.port}, CONTAINER, "127.0.0.1", LONG)
    assert failed.text == "HTTP probe failed with statuscode: 500"
    with server(stays=True) as made:
        late = probes.http_get({"port": made.port, "path": "/p"}, CONTAINER, "127.0.0.1", 0.1)
    assert late.text == (
        f'Get "http://127.0.0.1:{made.port}/p": context deadline exceeded '
        "(Client.Timeout exceeded while awaiting headers)"
    )
    refused = probes.http_get({"port": "web", "scheme": "HTTPS"}, CONTAINER, "127.0.0.1", LONG)
    assert refused.text == 'Get "https://127.0.0.1:1/": dial tcp 127.0.0.1:1: connect: connection refused'
    assert not probes.tcp_socket({"port": 1}, CONTAINER, "127.0.0.1", LONG).success
