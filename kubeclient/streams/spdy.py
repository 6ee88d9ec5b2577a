"""SPDY/3.1, as far as Kubernetes uses it.

HTTP/2 replaced SPDY everywhere but here: kubectl up to 1.29 runs exec and attach over it, and port-forward
still speaks it today, since 1.31 inside WebSocket messages. The client is moby/spdystream: it opens streams
(odd numbers), waits up to 30 s for each SYN_REPLY, and does no flow control, so WINDOW_UPDATE is neither
sent nor heeded.

A frame starts with eight bytes. Control: 0x8003, type (16 bits), flags (8), length (24). Data: stream (31
bits, first bit 0), flags (8), length (24). Header blocks are one zlib stream per direction, flushed at each
frame; what the client sends is compressed with the dictionary of the SPDY/3 draft (section 2.6.10.1),
what it receives need not be.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from kubeclient.streams.errors import ProtocolError
from kubeclient.streams.transport import ByteTransport, Reader

_VERSION = 0x8003
SYN_STREAM, SYN_REPLY, RST_STREAM, SETTINGS, PING, GOAWAY, HEADERS, WINDOW_UPDATE = 1, 2, 3, 4, 6, 7, 8, 9
FIN = 0x01
RST_PROTOCOL_ERROR, RST_REFUSED, RST_CANCEL, RST_INTERNAL = 1, 3, 5, 6

_MAX_CONTROL = 1 << 16
_MAX_HEADERS = 1 << 17
_PIECE = 1 << 16

# The dictionary: words with a four-byte length in front, then plain text.
_WORDS = (
    "options head post put delete trace accept accept-charset accept-encoding accept-language"
    " accept-ranges age allow authorization cache-control connection content-base content-encoding"
    " content-language content-length content-location content-md5 content-range content-type date"
    " etag expect expires from host if-match if-modified-since if-none-match if-range"
    " if-unmodified-since last-modified location max-forwards pragma proxy-authenticate"
    " proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade"
    " user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url"
    " public set-cookie keep-alive origin"
)
_TEXT = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    "403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    "Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    "chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    "text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


def _dictionary() -> bytes:
    words = (word.replace("_", " ").encode() for word in _WORDS.split())
    return b"".join(struct.pack(">I", len(word)) + word for word in words) + _TEXT.encode()


DICTIONARY = _dictionary()


@dataclass(frozen=True, slots=True)
class Event:
    """Something on one stream: `kind` is open, data, end (the client's half is closed) or reset."""

    kind: str
    stream: SpdyStream
    data: bytes = b""


@dataclass(slots=True, eq=False)
class SpdyStream:
    """One stream of a connection; methods may be called from any thread."""

    connection: SpdyConnection = field(repr=False)
    id: int
    headers: Mapping[str, str]
    local_closed: bool = False
    remote_closed: bool = False

    def write(self, data: bytes) -> None:
        """Send data; raises OSError when the connection is gone. Nothing is sent after `close`."""
        view = memoryview(data)
        for start in range(0, len(view), _PIECE):
            self.connection.send_data(self, bytes(view[start : start + _PIECE]))

    def close(self) -> None:
        """Close our half; the client reads the end of the stream."""
        self.connection.send_data(self, b"", fin=True)

    def reset(self, status: int = RST_CANCEL) -> None:
        """Abort the stream in both directions."""
        self.connection.send_reset(self, status)


class SpdyConnection:
    """The server's side of a connection: one thread calls `receive`, any thread writes to streams."""

    def __init__(self, transport: ByteTransport, leftover: bytes = b"") -> None:
        self._transport = transport
        self._reader = Reader(transport, leftover)
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj()
        self._streams: dict[int, SpdyStream] = {}
        self._lock = threading.Lock()
        self._last_id = 0

    def receive(self) -> Event | None:
        """The next event; None at the end of the connection. Raises ProtocolError."""
        while True:
            head = self._reader.exactly(8)
            if head is None:
                return None
            first, second = struct.unpack(">II", head)
            flags, length = second >> 24, second & 0xFFFFFF
            control = first >> 31
            if control and length > _MAX_CONTROL:
                raise ProtocolError(f"Could not read SPDY frame: a control frame of {length} bytes")
            body = self._reader.exactly(length)
            if body is None:
                return None
            if control and first >> 16 != _VERSION:
                raise ProtocolError(f"Could not read SPDY frame: version {first >> 16 & 0x7FFF}, expected 3")
            event = self._control(first & 0xFFFF, flags, body) if control else self._data(first, flags, body)
            if event is not None:
                return event

    def close(self) -> None:
        self._transport.close()

    def send_data(self, stream: SpdyStream, data: bytes, *, fin: bool = False) -> None:
        """One data frame; the last one carries `fin`."""
        with self._lock:
            if stream.local_closed:
                return
            stream.local_closed = fin
            self._transport.sendall(
                struct.pack(">II", stream.id, (FIN if fin else 0) << 24 | len(data)) + data
            )
            self._forget(stream)

    def send_reset(self, stream: SpdyStream, status: int) -> None:
        with self._lock:
            stream.local_closed = stream.remote_closed = True
            self._transport.sendall(control_frame(RST_STREAM, 0, struct.pack(">II", stream.id, status)))
            self._forget(stream)

    def _forget(self, stream: SpdyStream) -> None:
        if stream.local_closed and stream.remote_closed:
            self._streams.pop(stream.id, None)

    def _data(self, stream_id: int, flags: int, body: bytes) -> Event | None:
        stream = self._streams.get(stream_id)
        if stream is None or stream.remote_closed:
            return None  # data that was under way when we reset the stream
        if not flags & FIN:
            return Event("data", stream, body) if body else None
        with self._lock:
            stream.remote_closed = True
            self._forget(stream)
        return Event("end", stream, body)

    def _control(self, kind: int, flags: int, body: bytes) -> Event | None:
        if kind == SYN_STREAM:
            return self._opened(flags, body)
        if kind == RST_STREAM and len(body) >= 8:
            with self._lock:
                stream = self._streams.pop(struct.unpack_from(">I", body)[0] & 0x7FFFFFFF, None)
                if stream is None:
                    return None
                stream.local_closed = stream.remote_closed = True
            return Event("reset", stream)
        if kind == PING:
            with self._lock:
                self._transport.sendall(control_frame(PING, 0, body))
        elif kind == HEADERS:
            self._headers(body[4:])  # keeps the shared compression state in step
        return None

    def _opened(self, flags: int, body: bytes) -> Event:
        if len(body) < 10:
            raise ProtocolError("Could not read SPDY frame: SYN_STREAM is too short")
        stream_id = struct.unpack_from(">I", body)[0] & 0x7FFFFFFF
        if stream_id % 2 == 0 or stream_id <= self._last_id:
            raise ProtocolError(f"Could not open SPDY stream {stream_id}: the number is not the next odd one")
        self._last_id = stream_id
        stream = SpdyStream(self, stream_id, self._headers(body[10:]), remote_closed=bool(flags & FIN))
        with self._lock:
            self._streams[stream_id] = stream
            block = self._deflate.compress(encode_headers({})) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            self._transport.sendall(control_frame(SYN_REPLY, 0, struct.pack(">I", stream_id) + block))
        return Event("open", stream)

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, _MAX_HEADERS)
        except zlib.error as error:
            raise ProtocolError(f"Could not read SPDY headers: {error}") from error
        if self._inflate.unconsumed_tail:
            raise ProtocolError(f"Could not read SPDY headers: more than {_MAX_HEADERS} bytes")
        return decode_headers(plain)


def control_frame(kind: int, flags: int, body: bytes) -> bytes:
    """A control frame of that type."""
    return struct.pack(">HHI", _VERSION, kind, flags << 24 | len(body)) + body


def encode_headers(headers: Mapping[str, str]) -> bytes:
    """A name/value block before compression."""
    out = [struct.pack(">I", len(headers))]
    for name, value in headers.items():
        for text in (name, value):
            data = text.encode()
            out += (struct.pack(">I", len(data)), data)
    return b"".join(out)


def decode_headers(plain: bytes) -> dict[str, str]:
    """Headers by lower-case name; of several values (separated by NUL) the first. Raises ProtocolError."""
    headers = {}
    try:
        (count,), position = struct.unpack_from(">I", plain), 4
        for _ in range(count):
            pair = []
            for _ in range(2):
                (size,) = struct.unpack_from(">I", plain, position)
                position += 4
                if position + size > len(plain):
                    raise ProtocolError("Could not read SPDY headers: a length points past the end")
                pair.append(plain[position : position + size].decode("utf-8", "replace"))
                position += size
            headers[pair[0].lower()] = pair[1].split("\0")[0]
    except struct.error as error:
        raise ProtocolError(f"Could not read SPDY headers: {error}") from error
    return headers
