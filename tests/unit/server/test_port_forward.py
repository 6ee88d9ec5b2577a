"""Port-forward over SPDY, SPDY inside WebSocket, and the Python client's channels, to a listening socket."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import types
import zlib
from collections.abc import Iterator

import pytest

from kubeclient.streams import spdy
from kubelet_py.server import streaming
from tests.unit.server.fake_node import echo_server
from tests.unit.server.live_server import Node


@pytest.fixture
def echo(node: Node) -> Iterator[socket.socket]:
    with echo_server(b"hi\n") as listener:
        node.backend.ports = {80: listener.getsockname()}
        yield listener


def test_port_forward_over_spdy_carries_several_connections(node: Node, echo: socket.socket) -> None:
    client = node.upgrade(
        "/portForward/default/web",
        "Upgrade: SPDY/3.1",
        "X-Stream-Protocol-Version: portforward.k8s.io",
        method="POST",
    )
    assert client.headers["x-stream-protocol-version"] == "portforward.k8s.io"
    for index in range(2):
        client.open(4 * index + 1, streamtype="error", port="80", requestID=str(index))
        client.data(4 * index + 1, b"", fin=True)
        client.open(4 * index + 3, streamtype="data", port="80", requestID=str(index))
        client.data(4 * index + 3, b"x%d" % index, fin=True)
    found = client.streams(4)
    client.close()
    assert (found[3], found[7]) == (b"hi\nx0", b"hi\nx1")
    assert found[1] == found[5] == b""


class Patient(queue.Queue[bytes | None]):
    """Looks for nothing by itself: who waits has to be told."""

    def get(self, block: bool = True, timeout: float | None = None) -> bytes | None:
        return super().get(block)


def test_a_port_that_closes_first_ends_both_streams_at_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kubectl closes its client's connection when the error stream has ended, too."""
    queues = types.SimpleNamespace(Queue=Patient, Empty=queue.Empty, Full=queue.Full)
    monkeypatch.setattr(streaming, "queue", queues)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        node.backend.ports = {80: listener.getsockname()}

        def serve() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.sendall(b"bye")

        server = threading.Thread(target=serve)
        server.start()
        client = node.upgrade(
            "/portForward/default/web", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io"
        )
        client.open(1, streamtype="error", port="80", requestid="0")
        client.open(3, streamtype="data", port="80", requestid="0")
        assert client.streams(2) == {1: b"", 3: b"bye"}
        client.close()
        server.join()


def test_a_closed_port_is_told_on_the_error_stream(node: Node, echo: socket.socket) -> None:
    client = node.upgrade(
        "/portForward/default/web", "Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: portforward.k8s.io"
    )
    client.open(1, streamtype="error", port="81", requestid="0")
    client.open(3, streamtype="data", port="81", requestid="0")
    found = client.streams(2)
    client.close()
    assert found[1].startswith(b"error forwarding port 81 to pod default/web: dial tcp4")


def test_port_forward_inside_websocket_messages(node: Node, echo: socket.socket) -> None:
    """kubectl since 1.31; frames of SPDY may be split over messages."""
    client = node.websocket("/portForward/default/web", "SPDY/3.1+portforward.k8s.io")
    deflate = zlib.compressobj(9, zdict=spdy.DICTIONARY)
    stream = b""
    for number, kind in ((1, "error"), (3, "data")):
        plain = spdy.encode_headers({"streamtype": kind, "port": "80", "requestid": "0"})
        block = deflate.compress(plain) + deflate.flush(zlib.Z_SYNC_FLUSH)
        stream += spdy.control_frame(spdy.SYN_STREAM, 0, struct.pack(">IIH", number, 0, 0) + block)
    stream += struct.pack(">II", 3, 1 << 24 | 4) + b"ping"
    for index in range(0, len(stream), 13):
        client.message(stream[index : index + 13])
    received = b""
    for message in client.messages():
        received += message
        if b"ping" in received:
            break
    client.close()
    assert b"hi\n" in received


def test_port_forward_of_the_python_client(node: Node, echo: socket.socket) -> None:
    node.backend.ports[8080] = echo.getsockname()
    client = node.websocket("/portForward/default/web?port=80,8080,81", "v4.channel.k8s.io")
    client.message(b"\0abc")
    client.message(b"\2def")
    found: dict[int, bytes] = {}
    for message in client.messages():
        found[message[0]] = found.get(message[0], b"") + message[1:]
        if (
            found.get(0, b"").endswith(b"abc")
            and found.get(2, b"").endswith(b"def")
            and len(found.get(5, b"")) > 2
        ):
            break
    client.close()
    assert found[0] == b"\x50\x00hi\nabc" and found[1] == b"\x50\x00"
    assert found[2] == b"\x90\x1fhi\ndef"
    assert found[5].startswith(b"\x51\x00error forwarding port 81")
