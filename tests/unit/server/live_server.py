"""The server over real TLS sockets, and a client that speaks its streams by hand."""

from __future__ import annotations

import http.client
import socket
import ssl
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kubeclient.streams import spdy, websocket
from kubeclient.streams.transport import Duplex
from kubelet_py.server.access import Access, Identity
from kubelet_py.server.access_settings import AccessSettings
from kubelet_py.server.app import KubeletServer
from kubelet_py.server.healthz import HealthChecks
from tests.unit.server.fake_node import Backend, Pki

MASK = b"\x0a\x0b\x0c\x0d"


class Node:
    def __init__(self, folder: Path) -> None:
        self.pki = Pki(folder)
        self.backend = Backend(folder)
        self.asked: list[tuple[Any, ...]] = []
        self.trouble = ""
        certificate, key = self.pki.issue("kubelet")
        self.server = KubeletServer(
            self.backend,
            address="127.0.0.1",
            port=0,
            cert_file=certificate,
            key_file=key,
            client_ca_file=self.pki.ca,
            access=Access(AccessSettings(denied_seconds=0.0), self),
            log_folder=folder / "log",
            checks=HealthChecks(lambda: self.trouble),
            clock=lambda: 1_800_000_000.0,
        )
        self.server.start()
        self.admin = self.pki.issue("admin", "system:masters")

    def whose_token(self, token: str) -> Identity | None:
        return Identity(token, ("system:authenticated",)) if token in ("allowed", "nobody") else None

    def may(self, who: Identity, verb: str, subresource: str) -> bool:
        self.asked.append((who.name, who.groups, verb, subresource))
        return who.name == "allowed"

    def context(self, client: tuple[str, str] | None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=self.pki.ca)
        if client:
            context.load_cert_chain(*client)
        return context

    def http(self, client: tuple[str, str] | None) -> http.client.HTTPSConnection:
        return http.client.HTTPSConnection(
            "127.0.0.1", self.server.port, context=self.context(client), timeout=10
        )

    def get(self, path: str, method: str = "GET") -> tuple[int, str]:
        connection = self.http(self.admin)
        connection.request(method, path)
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        return answer.status, text

    def upgrade(self, path: str, *headers: str, method: str = "GET") -> Upgraded:
        raw = socket.create_connection(("127.0.0.1", self.server.port), 10)
        tls = self.context(self.admin).wrap_socket(raw, server_hostname="localhost")
        head = [f"{method} {path} HTTP/1.1", "Host: x", "Connection: Upgrade", *headers]
        tls.sendall("\r\n".join([*head, "", ""]).encode())
        return Upgraded(tls)

    def websocket(self, path: str, protocol: str) -> Upgraded:
        return self.upgrade(
            path,
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
            f"Sec-WebSocket-Protocol: {protocol}",
        )


class Input:
    """What a file opened for reading offers, over a Duplex."""

    def __init__(self, source: Duplex) -> None:
        self._source = source
        self._rest = b""

    def _more(self) -> bool:
        data = self._source.recv(65536)
        self._rest += data
        return bool(data)

    def read(self, size: int) -> bytes:
        while len(self._rest) < size and self._more():
            pass
        data, self._rest = self._rest[:size], self._rest[size:]
        return data

    def readline(self) -> bytes:
        while b"\n" not in self._rest and self._more():
            pass
        line, end, self._rest = self._rest.partition(b"\n")
        return line + end


class Upgraded:
    """The client's end after an upgrade request."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        # One thread may send while another reads, which an SSLSocket alone does not allow.
        self.tls = Duplex(tls)
        self.tls.settimeout(10)
        self._file = Input(self.tls)
        head = []
        while (line := self._file.readline().decode().strip()) != "":
            head.append(line)
        self.status = int(head[0].split()[1])
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
        }
        self._deflate = zlib.compressobj(9, zdict=spdy.DICTIONARY)

    def body(self) -> str:
        return self._file.read(int(self.headers["content-length"])).decode()

    def message(self, data: bytes, opcode: int = websocket.BINARY) -> None:
        self.tls.sendall(websocket.frame(opcode, data, mask=MASK))

    def messages(self) -> Iterator[bytes]:
        """Until the server's Close, which is answered."""
        while head := self._file.read(2):
            size = head[1]
            if size == 126:
                size = struct.unpack(">H", self._file.read(2))[0]
            elif size == 127:
                size = struct.unpack(">Q", self._file.read(8))[0]
            data = self._file.read(size)
            if head[0] & 0xF == websocket.CLOSE:
                self.message(data, websocket.CLOSE)
                return
            yield data

    def by_channel(self) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for message in self.messages():
            found[message[0]] = found.get(message[0], b"") + message[1:]
        return found

    def open(self, number: int, **headers: str) -> None:
        block = self._deflate.compress(spdy.encode_headers(headers)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        self.tls.sendall(spdy.control_frame(spdy.SYN_STREAM, 0, struct.pack(">IIH", number, 0, 0) + block))

    def data(self, number: int, data: bytes, fin: bool = False) -> None:
        self.tls.sendall(struct.pack(">II", number, int(fin) << 24 | len(data)) + data)

    def streams(self, count: int) -> dict[int, bytes]:
        """Data by stream until `count` streams have ended."""
        found: dict[int, bytes] = {}
        ended = 0
        while ended < count:
            first, second = struct.unpack(">II", self._file.read(8))
            data = self._file.read(second & 0xFFFFFF)
            if not first >> 31:
                found[first] = found.get(first, b"") + data
                ended += second >> 24 & 1
        return found

    def close(self) -> None:
        self.tls.close()
        self.tls.release()
