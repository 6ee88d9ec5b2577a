"""The health client against scripted servers, and against the real grpcio where it is installed."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from kubelet_py.pods import grpc_health, probes
from kubelet_py.pods.grpc_health import CheckFailed, check, message_status

LONG = 5.0
SETTINGS = bytes.fromhex("000000040000000000")


def frame(kind: int, flags: int, payload: bytes, stream: int = 1) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def answer(status: int, padding: int = 0) -> bytes:
    message = b"" if status == 0 else bytes((8, status))
    body = struct.pack(">BI", 0, len(message)) + message
    if padding:
        return frame(0, 8, bytes((padding,)) + body + bytes(padding))
    return frame(0, 0, body)


@pytest.fixture
def scripted() -> Iterator[Callable[[bytes], tuple[int, list[bytes]]]]:
    """A server that answers with these bytes; its port and what it got."""
    listeners = []

    def serve(said: bytes) -> tuple[int, list[bytes]]:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        got: list[bytes] = []

        def work() -> None:
            connection, _ = listener.accept()
            # A client that has had enough may be gone before shutdown, which is ENOTCONN then.
            with connection, suppress(OSError):
                got.append(connection.recv(65536))
                if said:
                    connection.sendall(said)
                    connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(65536):
                    got.append(part)

        threading.Thread(target=work, daemon=True).start()
        return listener.getsockname()[1], got

    yield serve
    for listener in listeners:
        listener.close()


TRAILERS = frame(1, 5, b"\x88")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (SETTINGS + frame(1, 4, b"\x88") + answer(1) + TRAILERS, None),
        (SETTINGS + answer(1)[:20] + answer(1)[20:], None),
        (SETTINGS + answer(1, padding=3) + TRAILERS, None),
        (SETTINGS + frame(6, 0, b"12345678", 0) + answer(1) + TRAILERS, None),
        (SETTINGS + answer(2) + TRAILERS, 'service unhealthy (responded with "NOT_SERVING")'),
        (SETTINGS + answer(0) + TRAILERS, 'service unhealthy (responded with "UNKNOWN")'),
        (SETTINGS + TRAILERS, "does not implement the grpc health protocol"),
        (SETTINGS + frame(7, 0, bytes(8), 0), "health rpc failed"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "not a gRPC server"),
        (SETTINGS + frame(0, 8, b""), "a frame of padding only: not a gRPC server"),
        (SETTINGS + frame(0, 8, b"\x03ab") + answer(1), "a frame of padding only: not a gRPC server"),
        (SETTINGS + frame(0, 0, bytes(16384)) * 4, "more than 65535 bytes: not a gRPC server"),
    ],
)
def test_answers(scripted: Callable[[bytes], tuple[int, Any]], said: bytes, problem: str | None) -> None:
    port, _ = scripted(said)
    if problem is None:
        check("127.0.0.1", port, "", LONG)
        return
    with pytest.raises(CheckFailed) as caught:
        check("127.0.0.1", port, "", LONG)
    assert problem in str(caught.value)


def test_settings_and_pings_are_acknowledged(scripted: Callable[[bytes], tuple[int, list[bytes]]]) -> None:
    port, got = scripted(SETTINGS + frame(6, 0, b"12345678", 0) + answer(1) + TRAILERS)
    check("127.0.0.1", port, "", LONG)
    end = threading.Event()
    for _ in range(500):
        if frame(6, 1, b"12345678", 0) in b"".join(got):
            break
        end.wait(0.01)
    assert frame(4, 1, b"", 0) in b"".join(got) and frame(6, 1, b"12345678", 0) in b"".join(got)


def test_a_server_that_says_nothing_times_out(scripted: Callable[[bytes], tuple[int, Any]]) -> None:
    port, _ = scripted(b"")
    with pytest.raises(CheckFailed, match=r"timeout: health rpc did not complete within 0\.1s"):
        check("127.0.0.1", port, "", 0.1)


def test_a_server_that_never_stops_talking_times_out() -> None:
    """Each frame came in time, so the prober listened for ever."""
    over = threading.Event()

    def talk(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            while not over.is_set():
                connection.sendall(frame(4, 1, b"", 0) * 1000)

    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(2) as pool:
        pool.submit(talk, listener)
        asked = pool.submit(check, "127.0.0.1", listener.getsockname()[1], "", 0.1)
        try:
            with pytest.raises(CheckFailed, match=r"timeout: health rpc did not complete within 0\.1s"):
                asked.result(LONG)
        finally:
            over.set()


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    outcome = probes.grpc({"port": port}, "127.0.0.1", LONG)
    assert not outcome.success and "failed to connect service at" in outcome.text


@pytest.mark.parametrize("body", [b"", b"\0\0\0\0\x02\x08", b"\1\0\0\0\x02\x08\x01"])
def test_half_a_message_is_none(body: bytes) -> None:
    assert message_status(body) is None


def test_a_long_service_name_is_written_whole() -> None:
    name = "s" * 300
    assert name.encode() in grpc_health.request("127.0.0.1:1", name)


def test_the_real_grpc_server() -> None:
    grpc = pytest.importorskip("grpc", reason="grpcio-health-checking is not installed (pip install it)")
    health = pytest.importorskip("grpc_health.v1.health")
    messages = pytest.importorskip("grpc_health.v1.health_pb2")
    services = pytest.importorskip("grpc_health.v1.health_pb2_grpc")
    server = grpc.server(ThreadPoolExecutor(2))
    servicer = health.HealthServicer()
    services.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    bare = grpc.server(ThreadPoolExecutor(1))
    bare_port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()
    try:
        servicer.set("", messages.HealthCheckResponse.SERVING)
        servicer.set("x" * 200, messages.HealthCheckResponse.SERVING)
        servicer.set("ill", messages.HealthCheckResponse.NOT_SERVING)
        check("127.0.0.1", port, "", LONG)
        check("127.0.0.1", port, "x" * 200, LONG)
        with pytest.raises(CheckFailed, match="NOT_SERVING"):
            check("127.0.0.1", port, "ill", LONG)
        with pytest.raises(CheckFailed, match='"UNKNOWN"'):
            check("127.0.0.1", port, "nobody", LONG)
        with pytest.raises(CheckFailed, match="does not implement"):
            check("127.0.0.1", bare_port, "", LONG)
    finally:
        server.stop(None)
        bare.stop(None)
