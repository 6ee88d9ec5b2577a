"""WebSocket (RFC 6455), the server's side, over a connection that HTTP has handed over.

kubectl since 1.30 and every other language's client run exec, attach and port-forward over it. Clients
mask their frames, may send text or binary, split messages, and ping (kubectl every 5 s, giving up after 61 s
without an answer); the server never masks.
"""

from __future__ import annotations

import base64
import hashlib
import struct
import threading

from kubeclient.streams.errors import ProtocolError
from kubeclient.streams.transport import ByteTransport, Reader

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
NORMAL, PROTOCOL_ERROR, TOO_BIG = 1000, 1002, 1009

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_FIN = 0x80
_MASKED = 0x80
_MAX_MESSAGE = 16 << 20
_PIECE = 1 << 16


def accept_key(key: str) -> str:
    """The Sec-WebSocket-Accept value for a client's Sec-WebSocket-Key (RFC 6455, 4.2.2)."""
    return base64.b64encode(hashlib.sha1(key.strip().encode() + _GUID).digest()).decode()


def frame(opcode: int, payload: bytes, *, mask: bytes = b"", final: bool = True) -> bytes:
    """One frame; a client gives four bytes as `mask`."""
    marker = _MASKED if mask else 0
    size = len(payload)
    if size < 126:
        length = bytes((marker | size,))
    elif size < 1 << 16:
        length = struct.pack(">BH", marker | 126, size)
    else:
        length = struct.pack(">BQ", marker | 127, size)
    head = bytes(((_FIN if final else 0) | opcode,)) + length + mask
    return head + (_mask(payload, mask) if mask else payload)


class WebSocket:
    """One thread calls `receive`; any thread may send."""

    def __init__(self, transport: ByteTransport, leftover: bytes = b"") -> None:
        self._transport = transport
        self._reader = Reader(transport, leftover)
        self._lock = threading.Lock()
        self._closed = False

    def receive(self) -> bytes | None:
        """The next message, text or binary alike; None after the client's Close or the end.

        Pings are answered on the way. Raises ProtocolError (after telling the client with a Close).
        """
        message = bytearray()
        started = False
        while True:
            found = self._frame()
            if found is None:
                return None
            final, opcode, payload = found
            if opcode == PING:
                self._send(PONG, payload)
            elif opcode == CLOSE:
                self.close(NORMAL)
                return None
            elif opcode in (TEXT, BINARY, CONTINUATION):
                if (opcode == CONTINUATION) != started:
                    self._fail(PROTOCOL_ERROR, "a continuation is out of place")
                started = True
                message += payload
                if len(message) > _MAX_MESSAGE:
                    self._fail(TOO_BIG, f"a message of more than {_MAX_MESSAGE} bytes")
                if final:
                    return bytes(message)
            elif opcode != PONG:
                self._fail(PROTOCOL_ERROR, f"opcode {opcode}")

    def send(self, data: bytes) -> None:
        """Send one binary message; raises OSError when the client is gone."""
        self._send(BINARY, data)

    def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Say that nothing more will come; the client answers with its own Close."""
        try:
            self._send(CLOSE, struct.pack(">H", code) + reason.encode()[:123], last=True)
        except OSError:
            pass  # a client that is gone needs no Close

    def abort(self) -> None:
        """Drop the connection; a thread in `receive` gets None."""
        self._transport.close()

    def _send(self, opcode: int, payload: bytes, *, last: bool = False) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = last
            self._transport.sendall(frame(opcode, payload))

    def _fail(self, code: int, what: str) -> None:
        self.close(code, what)
        raise ProtocolError(f"Could not read WebSocket frame: {what}")

    def _frame(self) -> tuple[bool, int, bytes] | None:
        head = self._reader.exactly(2)
        if head is None:
            return None
        final, opcode, size = bool(head[0] & _FIN), head[0] & 0x0F, head[1] & 0x7F
        if head[0] & 0x70:
            self._fail(PROTOCOL_ERROR, "reserved bits are set")
        if not head[1] & _MASKED:
            self._fail(PROTOCOL_ERROR, "the client did not mask its frame")
        if opcode >= CLOSE and (size > 125 or not final):
            self._fail(PROTOCOL_ERROR, "a control frame that is long or split")
        if size >= 126:
            extended = self._reader.exactly(2 if size == 126 else 8)
            if extended is None:
                return None
            size = int.from_bytes(extended, "big")
        if size > _MAX_MESSAGE:
            self._fail(TOO_BIG, f"a frame of {size} bytes")
        mask = self._reader.exactly(4)
        payload = self._reader.exactly(size) if mask is not None else None
        if mask is None or payload is None:
            return None
        return final, opcode, _mask(payload, mask)


class Tunnel:
    """A byte stream inside binary messages: how port-forward carries SPDY since kubectl 1.31."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._rest = b""

    def recv(self, size: int) -> bytes:
        while not self._rest:
            message = self._websocket.receive()
            if message is None:
                return b""
            self._rest = message
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def sendall(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self._websocket.send(data[start : start + _PIECE])

    def close(self) -> None:
        self._websocket.close()
        self._websocket.abort()


def _mask(data: bytes, mask: bytes) -> bytes:
    # Big integers make the XOR run in C, a hundred times faster than a loop over bytes.
    size = len(data)
    key = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")
