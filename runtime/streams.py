"""Frames over AF_UNIX: how the agent talks with a shim, and how exec and attach carry a process's stdio.

One connection carries several byte streams, so each piece travels in a frame: one channel byte, a four-byte
big-endian length, the payload. Channels 0-4 and 255 are those of Kubernetes' remote command protocol
(v4/v5.channel.k8s.io), so that the kubelet's server relays them without translation; 16-18 are our own and
carry JSON requests, responses and events between agent and shim.
"""

from __future__ import annotations

import _thread
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

STDIN = 0
STDOUT = 1
STDERR = 2
EXIT = 3
RESIZE = 4
REQUEST = 16
RESPONSE = 17
EVENT = 18
CLOSE = 255

HEADER = 5
PIECE = 65536
LARGEST = 1 << 24


class FrameError(ValueError):
    """The peer announced a frame larger than LARGEST: it does not speak this protocol."""


def pack(channel: int, payload: bytes = b"") -> bytes:
    """One frame as bytes; `payload` must be at most LARGEST bytes."""
    return bytes((channel,)) + len(payload).to_bytes(4, "big") + payload


class FrameReader:
    """Cuts a byte stream into frames, for a side that reads without blocking."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield every (channel, payload) completed by `data`; the rest waits for the next call."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= HEADER:
            size = int.from_bytes(buffer[1:HEADER], "big")
            if size > LARGEST:
                raise FrameError(f"Could not read frame: {size} bytes announced, at most {LARGEST} allowed")
            if len(buffer) < HEADER + size:
                return
            frame = buffer[0], bytes(buffer[HEADER : HEADER + size])
            del buffer[: HEADER + size]
            yield frame


class Stream:
    """The agent's blocking end of one exec or attach session.

    `receive` may run in one thread while others `send`. Nothing is buffered in user space, so `fileno()`
    may be polled: readable means that `receive` has a frame or the end. The shim sends all output, then
    one frame on channel EXIT (JSON `{"exitCode": n}` or `{"error": text}`), then closes.
    """

    __slots__ = ("_lock", "_socket")

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._lock = _thread.allocate_lock()

    def send(self, channel: int, data: bytes) -> None:
        """Send `data` on `channel`, in pieces of at most 64 kB unless it is a request: that is a document,
        not a part of a stream. Raises OSError when the shim is gone."""
        view = memoryview(data)
        size = LARGEST if channel == REQUEST else PIECE
        with self._lock:
            for start in range(0, max(len(view), 1), size):
                self._socket.sendall(pack(channel, bytes(view[start : start + size])))

    def close_channel(self, channel: int) -> None:
        """Say that nothing more will come on `channel`; for 0 the process sees the end of its stdin."""
        self.send(CLOSE, bytes((channel,)))

    def receive(self) -> tuple[int, bytes] | None:
        """Block for the next (channel, payload); None at the end of the session."""
        header = self._exactly(HEADER)
        if header is None:
            return None
        size = int.from_bytes(header[1:], "big")
        if size > LARGEST:
            raise FrameError(f"Could not read frame: {size} bytes announced, at most {LARGEST} allowed")
        payload = self._exactly(size) if size else b""
        return None if payload is None else (header[0], payload)

    def settimeout(self, seconds: float | None) -> None:
        """Let `receive` and `send` raise TimeoutError after `seconds` without progress."""
        self._socket.settimeout(seconds)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """End the session from any thread; a blocked `receive` returns None, and an exec is killed."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # already disconnected: closing is all that is left
        self._socket.close()

    def _exactly(self, size: int) -> bytes | None:
        pieces = []
        while size:
            try:
                piece = self._socket.recv(min(size, 1 << 20))
            except (ConnectionResetError, BrokenPipeError):
                return None
            except OSError:
                if self._socket.fileno() < 0:
                    return None  # closed by another thread just before we would have blocked
                raise
            if not piece:
                return None
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)
