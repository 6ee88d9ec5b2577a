from __future__ import annotations

import struct

import pytest

from kubeclient.streams import websocket
from kubeclient.streams.channels import (
    CLOSE,
    RESIZE,
    STDIN,
    STDOUT,
    WebSocketCommand,
    exited,
    failed,
    success,
)
from kubeclient.streams.errors import ProtocolError
from kubeclient.streams.websocket import BINARY, PING, TEXT, WebSocket
from tests.unit.streams.test_spdy import Wire

MASK = b"\x01\x02\x03\x04"


def client(*frames: tuple[int, bytes], step: int = 5) -> Wire:
    return Wire(*(websocket.frame(opcode, data, mask=MASK).hex() for opcode, data in frames), step=step)


def test_the_accept_key_is_the_one_of_the_rfc() -> None:
    """RFC 6455, section 1.3."""
    assert websocket.accept_key("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def test_the_examples_of_the_rfc_are_read() -> None:
    """RFC 6455, section 5.7: a masked text message."""
    assert WebSocket(Wire("818537fa213d7f9f4d5158")).receive() == b"Hello"
    assert websocket.frame(TEXT, b"Hello").hex() == "810548656c6c6f"


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536, 300_000])
def test_every_length_form_is_read_and_written(size: int) -> None:
    data = bytes(i % 251 for i in range(size))
    wire = client((BINARY, data), step=10_000)
    socket = WebSocket(wire)
    assert socket.receive() == data
    socket.send(data)
    head = 2 if size < 126 else 4 if size < 65536 else 10
    assert wire.sent[head:] == data and wire.sent[0] == 0x82


def test_split_messages_are_joined_around_a_ping() -> None:
    first = websocket.frame(BINARY, b"ab", mask=MASK, final=False)
    ping = websocket.frame(PING, b"p", mask=MASK)
    last = websocket.frame(websocket.CONTINUATION, b"cd", mask=MASK)
    wire = Wire((first + ping + last).hex())
    assert WebSocket(wire).receive() == b"abcd"
    assert wire.sent == websocket.frame(websocket.PONG, b"p")


def test_close_is_answered_once() -> None:
    wire = client((websocket.CLOSE, struct.pack(">H", 1000)))
    socket = WebSocket(wire)
    assert socket.receive() is None
    socket.close()
    socket.send(b"late")
    assert wire.sent == websocket.frame(websocket.CLOSE, struct.pack(">H", 1000))


@pytest.mark.parametrize(
    ("bytes_", "code"),
    [
        ("8100", 1002),  # not masked
        ("c18001020304", 1002),  # a reserved bit
        ("808001020304", 1002),  # a continuation of nothing
        ("09" + "8001020304", 1002),  # a ping in pieces
        ("838001020304", 1002),  # an unknown opcode
        ("82ff" + "7fffffffffffffff", 1009),
    ],
)
def test_broken_frames_end_the_connection_with_a_reason(bytes_: str, code: int) -> None:
    wire = Wire(bytes_)
    with pytest.raises(ProtocolError):
        WebSocket(wire).receive()
    assert struct.unpack(">H", wire.sent[2:4])[0] == code


def test_a_recorded_exec_of_kubectl_1_33_is_understood_and_answered() -> None:
    wire = Wire("828584347b0e8455196d8e82821f9a88ffe09a")
    command = WebSocketCommand(WebSocket(wire), "v5.channel.k8s.io", greeting=STDOUT)
    assert command.receive() == (STDIN, b"abc\n")
    assert command.receive() == (CLOSE, bytes((STDIN,)))
    command.send(STDOUT, b"abc\n")
    command.finish(exited(4))
    assert wire.sent.hex().startswith("820101" + "8205016162630a" + "827e00bf037b226d65746164617461223a7b7d")
    assert wire.sent.hex().endswith("880203e8")


def test_text_frames_and_resizes_are_accepted_and_foreign_channels_ignored() -> None:
    wire = client(
        (TEXT, b"\0ls\n"), (TEXT, b'\4{"Width": 99, "Height": 33}\n'), (BINARY, b"\x01x"), (BINARY, b"")
    )
    command = WebSocketCommand(WebSocket(wire), "v4.channel.k8s.io")
    assert command.receive() == (STDIN, b"ls\n")
    assert command.receive() == (RESIZE, b'{"Width":99,"Height":33}')
    assert command.receive() is None


def test_v4_knows_no_close_of_a_channel() -> None:
    command = WebSocketCommand(WebSocket(client((BINARY, b"\xff\x00"))), "v4.channel.k8s.io")
    assert command.receive() is None


def test_before_v4_the_end_is_text_and_success_is_silent() -> None:
    wire = client()
    WebSocketCommand(WebSocket(wire), "channel.k8s.io").finish(failed("no"))
    assert b"\x03Internal error occurred: no" in wire.sent
    wire = client()
    WebSocketCommand(WebSocket(wire), "channel.k8s.io").finish(success())
    assert wire.sent == websocket.frame(websocket.CLOSE, struct.pack(">H", 1000))
