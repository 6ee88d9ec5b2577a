"""One question to a gRPC server: grpc.health.v1.Health/Check, over plain HTTP/2 on one socket.

A unary call needs very little of HTTP/2 (RFC 9113): our preface and SETTINGS, one HEADERS frame whose fields
are literals without compression (RFC 7541 §6.2.2), one DATA frame; then the answer's DATA. Its headers
need not be understood: a successful call has a message, a failed one has none (it is headers only, with
grpc-status). The messages are one field each: `service` (string, 1) and `status` (enum, 1).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_STREAM, END_HEADERS, PADDED = 1, 1, 4, 8
STREAM = 1
LARGEST_FRAME = 16384
WINDOW = 65535  # what a server may send of an answer unless it is allowed more (RFC 9113, 6.9.2)
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
UNIMPLEMENTED = "this server does not implement the grpc health protocol (grpc.health.v1.Health)"


class CheckFailed(Exception):
    """The server is not healthy, or not a gRPC server; the text is for the event."""


def check(host: str, port: int, service: str, timeout: float) -> None:
    """Return when the server says that `service` ("" is the whole server) is SERVING; else CheckFailed."""
    end = time.monotonic() + timeout
    where = f"{host}:{port}"
    try:
        connection = socket.create_connection((host, port), timeout)
    except TimeoutError:
        raise CheckFailed(f'timeout: failed to connect service "{where}" within {timeout:g}s') from None
    except OSError as error:
        raise CheckFailed(f'error: failed to connect service at "{where}": {error.strerror}') from error
    with connection:
        try:
            connection.sendall(request(where, service))
            status = _answer(connection, end)
        except TimeoutError:
            raise CheckFailed(f"timeout: health rpc did not complete within {timeout:g}s") from None
        except OSError as error:
            raise CheckFailed(f"error: health rpc probe failed: {error.strerror or error}") from error
    if status is None:
        raise CheckFailed(f"error: health rpc failed: no answer for service {service!r}, or {UNIMPLEMENTED}")
    if status != 1:
        name = STATUSES[status] if status < len(STATUSES) else str(status)
        raise CheckFailed(f'service unhealthy (responded with "{name}")')


def request(authority: str, service: str) -> bytes:
    """Everything that the client sends before it has heard anything."""
    fields = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("user-agent", "kube-probe/1.32"),
        ("te", "trailers"),
    )
    headers = b"".join(b"\0" + _text(name) + _text(value) for name, value in fields)
    name = service.encode()
    message = b"\x0a" + _varint(len(name)) + name if name else b""
    body = struct.pack(">BI", 0, len(message)) + message
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(SETTINGS, 0, 0, b"")
        + _frame(HEADERS, END_HEADERS, STREAM, headers)
        + _frame(DATA, END_STREAM, STREAM, body)
    )


def _text(text: str) -> bytes:
    """A header string without Huffman coding; ours are shorter than 127 bytes but for a long address."""
    data = text.encode()
    if len(data) < 127:
        return bytes((len(data),)) + data
    return b"\x7f" + _varint(len(data) - 127) + data


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first: what both HPACK and protobuf use."""
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes((*made, number))


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def _answer(connection: socket.socket, end: float) -> int | None:
    """The status in the answer; None when the call ended without a message."""
    body = bytearray()
    for kind, flags, stream, payload in _frames(connection, end):
        if kind == SETTINGS and not flags & ACK:
            connection.sendall(_frame(SETTINGS, ACK, 0, b""))
        elif kind == PING and not flags & ACK:
            connection.sendall(_frame(PING, ACK, 0, payload))
        elif kind in (GOAWAY, RST_STREAM):
            break
        elif stream == STREAM and kind == DATA:
            body += _unpadded(payload) if flags & PADDED else payload
            if len(body) > WINDOW:
                raise OSError(f"more than {WINDOW} bytes: not a gRPC server")
        if stream == STREAM and kind in (DATA, HEADERS) and flags & END_STREAM:
            break
    return message_status(bytes(body))


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise OSError("a frame of padding only: not a gRPC server")
    return payload[1 : len(payload) - payload[0]]


def message_status(body: bytes) -> int | None:
    """`status` of a length-prefixed HealthCheckResponse; None where there is no whole message."""
    if len(body) < 5 or body[0] != 0 or len(body) - 5 < int.from_bytes(body[1:5]):
        return None
    message = body[5 : 5 + int.from_bytes(body[1:5])]
    # proto3 leaves a zero out; the only field there is has number 1 and one byte.
    return message[1] if len(message) >= 2 and message[0] == 8 else 0


def _frames(connection: socket.socket, end: float) -> Iterator[tuple[int, int, int, bytes]]:
    while True:
        head = _exactly(connection, 9, end)
        if len(head) < 9:
            return
        size = int.from_bytes(head[:3])
        if size > LARGEST_FRAME:
            raise OSError(f"a frame of {size} bytes: not a gRPC server")
        yield head[3], head[4], int.from_bytes(head[5:9]) & 0x7FFFFFFF, _exactly(connection, size, end)


def _exactly(connection: socket.socket, size: int, end: float) -> bytes:
    """`size` bytes, or fewer when the server closes. Raises TimeoutError at `end`, however much comes."""
    data = bytearray()
    while len(data) < size:
        left = end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(size - len(data))
        if not part:
            break
        data += part
    return bytes(data)
