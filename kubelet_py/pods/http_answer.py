"""The status of one HTTP GET, and little else: a node asks hundreds of them a second.

`http.client` reads an answer's headers with the e-mail parser, which costs more than all the rest of a probe,
and its timeout starts anew with each piece, so that a server which sends a byte now and then is waited for
without end. Here `timeout` seconds are for the whole exchange. The body is read as upstream reads it (at most
10 KiB, then the connection is closed), and thrown away.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import time
from collections.abc import Iterable
from functools import cache
from urllib.parse import quote

MOST_BODY = 10 * 1024
MOST_HEAD = 64 * 1024
_STATUS = re.compile(rb"HTTP/\d\.\d ([1-9]\d\d)(?: [^\r\n]*)?\r?\n")
_HEAD_ENDS = re.compile(rb"\r?\n\r?\n")
_LOCATION = re.compile(rb"\nlocation:[ \t]*([^\r\n]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})(?!\d)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding:[^\n]*chunked", re.IGNORECASE)
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")
_LINE_END = re.compile(rb"\r?\n")
_PLAIN_PATH = re.compile(r"[!$-;=?-Z_a-z~]*")  # no blanks, no quotes, ASCII only


class NoAnswer(Exception):
    """An HTTP request that got no answer; the text says why."""


class NoConnection(NoAnswer):
    """There is nobody to ask."""

    def __init__(self, number: int | None, words: str) -> None:
        super().__init__(words)
        self.errno = number


def request(host: str, path: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """A GET of `path`; `host` and the defaults give way to headers of the same names. Raises NoAnswer."""
    given = [*headers]
    for name, value in given:
        if "\n" in name + value or "\r" in name + value:
            raise NoAnswer(f"net/http: invalid header field value for {name!r}")
    names = {name.lower() for name, _ in given}
    usual = [("Host", host), ("Accept", "*/*"), ("Connection", "close")]
    pairs = [*(pair for pair in usual if pair[0].lower() not in names), *given]
    # A pod may leave these two out by giving them no value (upstream: pkg/probe/http/request.go).
    lines = [f"{n}: {v}" for n, v in pairs if v or n.lower() not in ("accept", "user-agent")]
    if not path.startswith("/"):
        path = f"/{path}"
    if not _PLAIN_PATH.fullmatch(path):
        path = quote(path, safe="/?%&=+,;:@!$'()*~-._[]|")
    return "\r\n".join([f"GET {path} HTTP/1.1", *lines, "", ""]).encode("utf-8")


def connect(host: str, port: int, timeout: float) -> socket.socket:
    """A TCP connection. Raises OSError."""
    try:
        socket.inet_pton(socket.AF_INET, host)
    except OSError:
        return socket.create_connection((host, port), timeout)
    channel = socket.socket()  # an address needs no resolver
    try:
        channel.settimeout(timeout)
        channel.connect((host, port))
    except OSError:
        channel.close()
        raise
    return channel


def status(host: str, port: int, message: bytes, timeout: float, *, tls: bool) -> int:
    """What a request is answered with. Raises NoAnswer, OSError (TimeoutError when the time is over)."""
    return exchange(host, port, message, timeout, tls=tls)[0]


def exchange(host: str, port: int, message: bytes, timeout: float, *, tls: bool) -> tuple[int, str, bytes]:
    """Status, Location ("" without one) and the beginning of the body of the answer. Raises as `status`,
    NoConnection where there is nobody to ask."""
    end = time.monotonic() + timeout
    try:
        channel = connect(host, port, timeout)
    except OSError as error:
        raise NoConnection(error.errno, connect_words(error)) from error
    try:
        if tls:
            channel.settimeout(_left(end))
            channel = _unverified().wrap_socket(channel, server_hostname=host)
        channel.settimeout(_left(end))
        channel.sendall(message)
        return _read(channel, end)
    finally:
        channel.close()


def connect_words(error: OSError) -> str:
    """Why there is no connection, as Go says it."""
    if isinstance(error, TimeoutError):
        return "i/o timeout"
    if isinstance(error, socket.gaierror) or not error.errno:
        return f"lookup: {error.strerror or error}"
    return f"connect: {os.strerror(error.errno).lower()}"


def _read(channel: socket.socket, end: float) -> tuple[int, str, bytes]:
    data, searched = b"", 0
    while True:
        found = _HEAD_ENDS.search(data, searched)
        if found is None:
            piece = _receive(channel, end)
            if not piece:
                raise NoAnswer("malformed HTTP response" if data else "EOF")
            searched = max(0, len(data) - 3)  # the end may have begun to come
            data += piece
            if len(data) > MOST_HEAD:
                raise NoAnswer("net/http: server response headers exceeded 65536 bytes; aborted")
            continue
        line = _STATUS.match(data)
        if line is None:
            start = data.partition(b"\n")[0].rstrip(b"\r")[:80].decode(errors="replace")
            raise NoAnswer(f'malformed HTTP response "{start}"')
        code = int(line[1])
        if code >= 200 or code == 101:
            break
        data, searched = data[found.end() :], 0  # 100 Continue, 103 Early Hints: the answer comes after it
    head, body = data[: found.end()], data[found.end() :]
    ending = _Ending(code, head)
    while not ending.reached(body) and len(body) < MOST_BODY:
        piece = _receive(channel, end)
        if not piece:
            break
        body += piece
    location = _LOCATION.search(head)
    return code, location[1].strip().decode("utf-8", "replace") if location else "", body[:MOST_BODY]


class _Ending:
    """Where an answer ends. It comes in as small pieces as the server likes: none is looked at twice."""

    def __init__(self, code: int, head: bytes) -> None:
        self._bare = code in (101, 204, 304)
        self._chunked = _CHUNKED.search(head) is not None
        length = _LENGTH.search(head)
        self._length = int(length[1]) if length is not None else None
        self._chunk = 0  # where the first chunk begins that is not known to be whole

    def reached(self, body: bytes) -> bool:
        """Whether nothing more will come, though the connection may stay open. `body`: all that is here."""
        if self._bare:
            return True
        if self._chunked:
            return self._in_chunks(body)
        return self._length is not None and len(body) >= self._length

    def _in_chunks(self, body: bytes) -> bool:
        """Whether the last chunk is there, and what follows it up to an empty line (RFC 9112, 7.1). Chunk by
        chunk: a search for the last one would begin anew at every line that could be it."""
        while (line := _CHUNK_SIZE.match(body, self._chunk)) is not None:
            size = int(line[1], 16)
            if size > len(body):  # also one that is larger than any place in memory
                return False
            if size == 0:
                rest = body[line.end() :]
                return _LINE_END.match(rest) is not None or b"\n\r\n" in rest or b"\n\n" in rest
            end = _LINE_END.match(body, line.end() + size)
            if end is None:
                return False
            self._chunk = end.end()
        return False


def _receive(channel: socket.socket, end: float) -> bytes:
    channel.settimeout(_left(end))
    return channel.recv(16384)


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@cache
def _unverified() -> ssl.SSLContext:
    """Certificates are not checked, as upstream: many a server has one only for itself."""
    return ssl._create_unverified_context()
