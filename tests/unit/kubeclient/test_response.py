"""Heads of answers are understood as the standard library does, or refused."""

from __future__ import annotations

import io
from http.client import HTTPException, HTTPResponse
from typing import Any

import pytest

from kubeclient.response import Response


class Socket:
    """What a response asks of a socket."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(io.BytesIO(self._raw))


def read(kind: type[HTTPResponse], raw: bytes, method: str) -> tuple[Any, ...]:
    sock: Any = Socket(raw)
    response = kind(sock, method=method)
    response.begin()
    headers = response.received.items() if isinstance(response, Response) else response.getheaders()
    facts = response.status, response.reason, response.version, response.will_close, response.chunked
    return (*facts, response.length, {name.lower(): value for name, value in headers}, response.read())


HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PATCH"])
@pytest.mark.parametrize(
    "raw",
    [
        HEAD + b"Content-Type: application/json\r\nAudit-Id: a:b\r\nContent-Length: 5\r\n\r\nhelloMORE",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n",
        HEAD + b"transfer-encoding: Chunked\r\nContent-Length: 2\r\n\r\n1\r\na\r\n0\r\nX: y\r\n\r\n",
        HEAD + b"\r\nto the end",
        HEAD + b"Connection: Close\r\nContent-Length: 1\r\n\r\nx",
        HEAD + b"Content-Length:0\r\nEmpty:\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n",
        b"HTTP/1.1 404 \r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 500\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 100 Continue\r\nA: b\r\n\r\n" + HEAD + b"Content-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    ],
)
def test_a_head_means_what_it_means_to_the_standard_library(raw: bytes, method: str) -> None:
    assert read(Response, raw, method) == read(HTTPResponse, raw, method)


def test_lines_of_one_name_are_one_with_commas() -> None:
    raw = HEAD + b"Warning: 299 - one\r\nwarning: 299 - two\r\nContent-Length: 0\r\n\r\n"
    assert read(Response, raw, "GET")[6]["warning"] == "299 - one, 299 - two"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 99 Low\r\n\r\n",
        b"HTTP/1.1 1000 High\r\n\r\n",
        HEAD + b"no colon\r\n\r\n",
        HEAD + b"Name : value\r\n\r\n",
        HEAD + b"A: b\r\n goes on: here\r\n\r\n",
        HEAD + b": nameless\r\n\r\n",
        HEAD + b"Content-Length: 2\r\n",
        HEAD + b"A: b\r\n" * 101 + b"\r\n",
        HEAD + b"A: " + b"b" * 65536 + b"\r\n\r\n",
        b"HTTP/1.1 200 " + b"O" * 65536 + b"\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\nx",
        HEAD + b"Content-Length: one\r\n\r\nx",
        HEAD + b"Content-Length:\r\n\r\nx",
        HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        HEAD + b"Content-Length: 1, 2\r\n\r\nab",
        HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",  # int() refuses with ValueError
        HEAD + b"Content-Length: 1073741825\r\n\r\nx",
        HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: identity\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_what_is_no_head_is_refused(raw: bytes) -> None:
    with pytest.raises(HTTPException):
        read(Response, raw, "GET")


@pytest.mark.parametrize("interim", ["100 Continue", "102 Processing", "103 Early Hints", "199 Odd"])
def test_interim_answers_are_passed_over(interim: str) -> None:
    raw = f"HTTP/1.1 {interim}\r\nLink: x\r\n\r\n".encode() * 2 + HEAD + b"Content-Length: 2\r\n\r\nok"
    assert read(Response, raw, "GET")[0] == 200 and read(Response, raw, "GET")[7] == b"ok"


def test_another_protocol_is_no_interim_answer_and_its_connection_is_not_used_again() -> None:
    status, *_, will_close, _, _, _, body = read(Response, b"HTTP/1.1 101 Switching\r\n\r\nxyz", "GET")
    assert (status, will_close, body) == (101, True, b"")


def test_one_length_told_twice_is_one() -> None:
    for told in (b"Content-Length: 2\r\nContent-Length: 2", b"Content-Length: 2, 2"):
        *_, will_close, _, length, _, body = read(Response, HEAD + told + b"\r\n\r\nokMORE", "GET")
        assert (will_close, length, body) == (False, 2, b"ok")


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_without_a_body_has_no_chunks(status: str) -> None:
    raw = f"HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    *_, will_close, chunked, length, _, body = read(Response, raw, "GET")
    assert (will_close, chunked, length, body) == (False, False, 0, b"")
