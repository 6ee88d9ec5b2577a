"""As much of a CRI client as a pod sandbox needs: unary gRPC calls over a Unix socket, messages by hand.

cri-tools is not in Debian 12. A message is written as {field number: value}, where a value is a number, text,
another message or a list of these; it is read as {field number: [values]}, each a number or bytes.
Source: k8s.io/cri-api, pkg/apis/runtime/v1/api.proto; protobuf's encoding.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubelet_py.pods import grpc_health as h2

Sent = Mapping[int, Any]
Read = dict[int, list[Any]]


class Cri:
    """Calls of runtime.v1.RuntimeService at a socket. Raises CallFailed when a call has no answer."""

    def __init__(self, path: Path, seconds: float = 60) -> None:
        self._path, self._seconds = path, seconds

    def __call__(self, method: str, message: Sent) -> Read:
        end = time.monotonic() + self._seconds
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(self._seconds)
            connection.connect(str(self._path))
            connection.sendall(_request(f"/runtime.v1.RuntimeService/{method}", encode(message)))
            body = _answer(connection, end)
        if len(body) < 5:
            # The reason is in compressed headers; containerd logs it as well.
            raise CallFailed(f"{method} failed")
        return decode(body[5 : 5 + int.from_bytes(body[1:5])])


class CallFailed(Exception):
    """The server gave no message; its log says why."""


def _request(path: str, message: bytes) -> bytes:
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "localhost"}
    fields |= {"content-type": "application/grpc", "te": "trailers"}
    headers = b"".join(b"\0" + h2._text(name) + h2._text(value) for name, value in fields.items())
    body = struct.pack(">BI", 0, len(message)) + message
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + h2._frame(h2.SETTINGS, 0, 0, b"")
        + h2._frame(h2.HEADERS, h2.END_HEADERS, h2.STREAM, headers)
        + h2._frame(h2.DATA, h2.END_STREAM, h2.STREAM, body)
    )


def _answer(connection: socket.socket, end: float) -> bytes:
    body = bytearray()
    for kind, flags, stream, payload in h2._frames(connection, end):
        if kind in (h2.SETTINGS, h2.PING) and not flags & h2.ACK:
            back = payload if kind == h2.PING else b""
            connection.sendall(h2._frame(kind, h2.ACK, 0, back))
        elif kind in (h2.GOAWAY, h2.RST_STREAM):
            break
        elif stream == h2.STREAM and kind == h2.DATA:
            body += payload
        if stream == h2.STREAM and flags & h2.END_STREAM and kind in (h2.DATA, h2.HEADERS):
            break
    return bytes(body)


def encode(message: Sent) -> bytes:
    made = b""
    for number, value in message.items():
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, int):
                made += h2._varint(number << 3) + h2._varint(one)
                continue
            data = one.encode() if isinstance(one, str) else encode(one)
            made += h2._varint(number << 3 | 2) + h2._varint(len(data)) + data
    return made


def decode(data: bytes) -> Read:
    """Numbers and bytes by field; a field that is a message is decoded by whoever knows that it is one."""
    found: Read = {}
    at = 0

    def varint() -> int:
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return number

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            found.setdefault(key >> 3, []).append(varint())
        elif key & 7 == 2:
            size = varint()
            found.setdefault(key >> 3, []).append(data[at : at + size])
            at += size
        else:
            raise ValueError(f"wire type {key & 7} is not one of CRI's")
    return found
