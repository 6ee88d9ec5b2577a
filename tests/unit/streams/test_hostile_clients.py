"""What clients of exec and port-forward send to fill memory, or to keep the interpreter busy."""

from __future__ import annotations

import struct

import pytest

from kubeclient.streams import spdy
from kubeclient.streams.channels import Sizes, SpdyCommand
from kubeclient.streams.errors import ProtocolError
from kubelet_py.server import query, streaming
from kubelet_py.server.errors import HttpError
from runtime.terminal import parse_size
from tests.unit.streams.test_spdy import Client, Wire


@pytest.mark.parametrize("data", [b"1 " * 50_000, b"[" * 3000, b"[" * 200_000])
def test_terminal_sizes_are_few_and_flat(data: bytes) -> None:
    """Many were cut from their front one by one; deep ones ended the thread with a RecursionError."""
    with pytest.raises(ProtocolError, match="Could not read terminal size"):
        Sizes().feed(data)


@pytest.mark.parametrize("size", [b'{"Width":1e999,"Height":1}', b"[" * 100_000 + b"]" * 100_000])
def test_a_size_that_makes_no_sense_does_not_end_the_shim(size: bytes) -> None:
    assert parse_size(size) is None


def test_what_comes_before_the_streams_is_not_kept_without_end() -> None:
    client = Client()
    piece = (struct.pack(">II", 1, 1 << 18) + bytes(1 << 18)).hex()
    wire = Wire(client.open(1, "stdin"), *[piece] * 5, client.open(3, "error"), client.open(5, "stdout"))
    command = SpdyCommand(spdy.SpdyConnection(wire), "v4.channel.k8s.io")
    with pytest.raises(ProtocolError, match="too much came before its streams"):
        command.open(stdin=True, stdout=True, stderr=False, tty=False)


def test_half_connections_are_not_kept_without_end() -> None:
    """Each stream that lacks its other half was remembered until the client went."""
    pairs: dict[str, streaming._Forward] = {}
    connection = spdy.SpdyConnection(Wire())

    def stream(number: int) -> spdy.SpdyStream:
        headers = {"streamtype": "error", "port": "80", "requestid": str(number)}
        return spdy.SpdyStream(connection, number, headers)

    kept = [streaming._pair(pairs, stream(number)) for number in range(1, 2003, 2)]
    assert len(pairs) == 1000 and kept[-1] is None


@pytest.mark.parametrize("port", ["\u00b2", "9" * 5000, "0", "-1", ""])
def test_ports_are_numbers(port: str) -> None:
    headers = {"streamtype": "error", "port": port}
    stream = spdy.SpdyStream(spdy.SpdyConnection(Wire()), 1, headers)
    assert streaming._pair({}, stream) is None
    if port:
        with pytest.raises(HttpError, match="invalid port"):
            query.ports({"port": [port]})


def test_ports_are_as_many_as_there_are_channels() -> None:
    assert len(query.ports({"port": ["80"] * 128})) == 128
    with pytest.raises(HttpError, match="too many ports"):
        query.ports({"port": [",".join(["80"] * 129)]})
