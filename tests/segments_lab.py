"""TCP in pieces of more than 64 kB, for tests: who sends so much and takes it, and who sees how large the
frames are."""

from __future__ import annotations

import hashlib
import random
import socket
import threading
import time

from network_lab import Namespace

from cni.netns import in_namespace

SIZE = 196608
MSG_TRUNC = getattr(socket, "MSG_TRUNC", 0x20)
ETH_P_ALL = 3


class Watch:
    """The largest frame that passes an interface of a namespace (None: the calling thread's)."""

    def __init__(self, place: Namespace | None, interface: str) -> None:
        def make() -> socket.socket:
            return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))

        self._socket = in_namespace(place.fd, make) if place else make()
        self._socket.bind((interface, 0))
        self._socket.settimeout(0.05)
        self.largest, self._open = 0, True
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while self._open:
            try:
                self.largest = max(self.largest, self._socket.recv_into(bytearray(1), 1, MSG_TRUNC))
            except TimeoutError:
                continue

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self._open = False
        self._thread.join(5)
        self._socket.close()


class Sink:
    """Takes one connection after another, and answers each with the digest of all that it was sent."""

    def __init__(self, place: Namespace, port: int) -> None:
        self._socket = place.socket()
        self._socket.settimeout(None)
        self._socket.bind(("0.0.0.0", port))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                digest = hashlib.sha256()
                while data := connection.recv(1 << 20):
                    digest.update(data)
                connection.sendall(digest.digest())

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._socket.close()


class Source:
    """Sends `size` random bytes to the first who connects, and then their digest."""

    def __init__(self, place: Namespace, port: int, size: int) -> None:
        self._size = size
        self._socket = place.socket()
        self._socket.settimeout(60)
        self._socket.bind(("0.0.0.0", port))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        data, digest = random.Random(76).randbytes(1 << 20), hashlib.sha256()
        with connection:
            for _ in range(self._size >> 20):
                connection.sendall(data)
                digest.update(data)
            connection.sendall(digest.digest())

    def close(self) -> None:
        self._thread.join(5)
        self._socket.close()


def fetch(taker: Namespace, address: str, port: int) -> int:
    """Take all that a Source sends; how many bytes that were, as they were sent."""
    kept = bytearray()
    with taker.socket() as channel:
        channel.settimeout(60)
        channel.connect((address, port))
        while data := channel.recv(1 << 20):
            kept += data
    assert hashlib.sha256(kept[:-32]).digest() == kept[-32:]
    return len(kept) - 32


def deliver(
    sender: Namespace | None, address: str, port: int, watch: Watch, *, beyond: int, least: int
) -> None:
    """Send until a frame larger than `beyond` was seen, `least` bytes at the least; all must have arrived.
    None sends from the calling thread's namespace."""
    data, digest = random.Random(75).randbytes(1 << 20), hashlib.sha256()
    deadline, sent = time.monotonic() + 60, 0
    with sender.socket() if sender else socket.socket() as channel:
        channel.settimeout(60)
        channel.connect((address, port))
        while sent < least or watch.largest <= beyond:
            assert time.monotonic() < deadline, f"no frame beyond {beyond} in {sent} bytes: {watch.largest}"
            channel.sendall(data)
            digest.update(data)
            sent += len(data)
        channel.shutdown(socket.SHUT_WR)
        assert channel.recv(64) == digest.digest()
