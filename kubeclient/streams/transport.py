"""One connection, read by one thread while another writes, with or without TLS.

The streaming protocols are full duplex: output flows while a thread waits for input. An OpenSSL connection
must not be used by two threads at once (Python serialises them only since 3.13), and a blocking read would
hold the lock forever. So the socket is non-blocking, every TLS call is short and made under a lock, and
waiting is done outside of it with poll().
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from typing import Protocol


class ByteTransport(Protocol):
    """What the framing layers need from below."""

    def recv(self, size: int) -> bytes: ...

    def sendall(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Duplex:
    """A connected socket (plain or TLS) for one reader and any number of writers.

    `recv` returns b"" at the end of the stream; timeouts raise TimeoutError; a connection that was reset
    reads as its end, and raises BrokenPipeError or ConnectionResetError on sending.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._timeout: float | None = None
        self._state = threading.Lock()
        self._sending = threading.Lock()

    def settimeout(self, seconds: float | None) -> None:
        """How long the next `recv` or `sendall` may go without progress; None for ever."""
        self._timeout = seconds

    def handshake(self) -> None:
        """Do the TLS handshake; nothing on a plain socket. Raises ssl.SSLError, OSError."""
        if isinstance(self._socket, ssl.SSLSocket):
            deadline = self._deadline()
            while True:
                try:
                    self._socket.do_handshake()
                    return
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, deadline)
                except ssl.SSLWantWriteError:
                    self._wait(select.POLLOUT, deadline)

    def recv(self, size: int) -> bytes:
        deadline = self._deadline()
        while True:
            try:
                with self._state:
                    return self._socket.recv(size)
            except (ssl.SSLWantReadError, BlockingIOError):
                wanted = select.POLLIN
            except ssl.SSLWantWriteError:
                wanted = select.POLLOUT
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionResetError, BrokenPipeError):
                return b""
            except OSError:
                if self._socket.fileno() < 0:
                    return b""  # closed by another thread
                raise
            if not self._wait(wanted, deadline):
                return b""

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        with self._sending:
            deadline = self._deadline()
            while view:
                try:
                    with self._state:
                        sent = self._socket.send(view)
                    view = view[sent:]
                    deadline = self._deadline()
                    continue
                except (ssl.SSLWantWriteError, BlockingIOError):
                    wanted = select.POLLOUT
                except ssl.SSLWantReadError:
                    wanted = select.POLLIN
                except ssl.SSLError as error:
                    raise BrokenPipeError(f"Could not send: {error.reason or error}") from error
                if not self._wait(wanted, deadline):
                    raise BrokenPipeError("Could not send: the connection was closed")

    def peer_closed(self) -> bool:
        """True if the other side has closed; asks without blocking. What it sent meanwhile is lost."""
        try:
            with self._state:
                return self._socket.recv(4096) == b""
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, BlockingIOError):
            return False
        except OSError:
            return True

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        """End the connection from any thread; whoever waits in `recv` gets its end."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more, which is what we want

    def release(self) -> None:
        """Give the descriptor back; only the owner calls it, when no other thread uses the connection."""
        if isinstance(self._socket, ssl.SSLSocket):
            try:
                self._socket.unwrap()  # says goodbye; waiting for the answer is not required (RFC 8446, 6.1)
            except (OSError, ValueError):
                pass  # the answer is not here yet, or the connection is gone
        self._socket.close()

    def _deadline(self) -> float | None:
        return None if self._timeout is None else time.monotonic() + self._timeout

    def _wait(self, wanted: int, deadline: float | None) -> bool:
        number = self._socket.fileno()
        if number < 0:
            return False
        poller = select.poll()
        poller.register(number, wanted)
        left = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        if not poller.poll(left):
            raise TimeoutError("Could not go on: the peer was silent for too long")
        return True


class Reader:
    """Exact reads over a transport, with what another layer had already read in front."""

    def __init__(self, transport: ByteTransport, leftover: bytes = b"") -> None:
        self._transport, self._buffer = transport, bytearray(leftover)

    def exactly(self, size: int) -> bytes | None:
        """`size` bytes; None if the stream ends before them."""
        while len(self._buffer) < size:
            piece = self._transport.recv(65536)
            if not piece:
                return None
            self._buffer += piece
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
