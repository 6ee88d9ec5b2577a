"""Under the HTTP servers: accepting connections (healthz alone without TLS), reading requests, not too far.

The standard library's handler reads through a buffered file, which may swallow the first bytes of the
protocol that follows a 101; here what was read too far can be taken back.
"""

from __future__ import annotations

import logging
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable
from typing import Any

from kubeclient.streams.transport import Duplex

log = logging.getLogger(__name__)


class Listener(socketserver.ThreadingTCPServer):
    """Accepts connections for `owner`, which the handlers reach as `self.server.owner`."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handler: type[Any],
        owner: Any,
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        """`context` is asked for each connection: a certificate may be another one by then."""
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.owner, self.context = owner, context
        self.stopping = threading.Event()
        super().__init__(address, handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.context is None:
            return connection, address
        # The handshake is done in the connection's own thread: a slow client must not hold up others.
        wrapped = self.context().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return wrapped, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.exception("Failed request client=%s", client_address[0])

    def serve(self) -> None:
        """Accept until `end`; for a thread of its own."""
        while not self.stopping.is_set():
            self.handle_request()

    def end(self) -> None:
        """Stop accepting, from another thread; no polling: on Linux this wakes a thread in accept()."""
        self.stopping.set()
        self.socket.shutdown(socket.SHUT_RDWR)


class Input:
    """The request's reading end: what http.server needs, and the bytes left over for an upgrade."""

    def __init__(self, connection: Duplex) -> None:
        self._connection, self._buffer = connection, b""

    def readline(self, limit: int = -1) -> bytes:
        while (end := self._buffer.find(b"\n")) < 0 and (limit < 0 or len(self._buffer) < limit):
            piece = self._connection.recv(65536)
            if not piece:
                break
            self._buffer += piece
        size = end + 1 if end >= 0 else len(self._buffer)
        return self._take(size if limit < 0 else min(size, limit))

    def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = self._connection.recv(65536)
            if not piece:
                break
            self._buffer += piece
        return self._take(size)

    def rest(self) -> bytes:
        return self._take(len(self._buffer))

    def _take(self, size: int) -> bytes:
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def close(self) -> None:
        """Part of the interface; the connection is closed elsewhere."""


class Output:
    """The response's writing end, unbuffered."""

    def __init__(self, connection: Duplex) -> None:
        self._connection = connection

    def write(self, data: bytes) -> int:
        self._connection.sendall(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is buffered."""
