"""The bytes here were sent by kubectl 1.20.2 for `kubectl exec -i web -- sh -c 'cat; exit 4'`."""

from __future__ import annotations

import struct
import zlib

import pytest

from kubeclient.streams import spdy
from kubeclient.streams.channels import CLOSE, STDERR, STDIN, STDOUT, SpdyCommand, exited
from kubeclient.streams.errors import ProtocolError, StreamTimeout

OPEN_ERROR = (
    "80030001000000290000000100000000000078f9e3c6a7c26260606004a7b392a2d4c45c6851c29a0a0a6800000000ffff"
)
OPEN_STDIN = "800300010000001700000003000000000000c22e555c92929907000000ffff"
OPEN_STDOUT = "80030001000000190000000500000000" + "0000c22ac5565c92925f5a02000000ffff"
OPEN_STDERR = "800300010000001500000007000000000000c229975a5404000000ffff"
INPUT = "00000003000000046162630a0000000301000000"
GOODBYE = "80030003000000080000000100000005" + "80030007000000080000000000000000"

REPLIES = (
    "800300020000001000000001789c6260606000000000ffff"
    "800300020000000c00000003020100000000ffff"
    "800300020000000c00000005020100000000ffff"
    "800300020000000c00000007020100000000ffff"
)


class Wire:
    """A transport that plays a recording, a few bytes at a time, and records what is sent."""

    def __init__(self, *recorded: str, step: int = 7, silent: bool = False) -> None:
        self._data = bytes.fromhex("".join(recorded))
        self._step, self._silent = step, silent
        self.sent = b""

    def recv(self, size: int) -> bytes:
        piece, self._data = self._data[: self._step], self._data[self._step :]
        if not piece and self._silent:
            raise TimeoutError("silence")
        return piece

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def close(self) -> None:
        self._data = b""


def test_the_dictionary_is_the_one_of_the_draft() -> None:
    assert len(spdy.DICTIONARY) == 1423
    assert zlib.adler32(spdy.DICTIONARY) == 0xE3C6A7C2


@pytest.mark.parametrize("step", [1, 7, 4096])
def test_a_recorded_exec_is_understood_and_answered_byte_for_byte(step: int) -> None:
    wire = Wire(OPEN_ERROR, OPEN_STDIN, OPEN_STDOUT, OPEN_STDERR, INPUT, GOODBYE, step=step)
    command = SpdyCommand(spdy.SpdyConnection(wire), "v4.channel.k8s.io")
    command.open(stdin=True, stdout=True, stderr=True, tty=False)
    assert wire.sent.hex() == REPLIES
    assert command.receive() == (STDIN, b"abc\n")
    assert command.receive() == (CLOSE, bytes((STDIN,)))
    wire.sent = b""
    command.send(STDOUT, b"abc\n")
    command.send(STDERR, b"e")
    command.finish(exited(4))
    status = (
        b'{"metadata":{},"status":"Failure",'
        b'"message":"command terminated with non-zero exit code: exit status 4","reason":"NonZeroExitCode",'
        b'"details":{"causes":[{"reason":"ExitCode","message":"4"}]}}'
    )
    assert wire.sent == (
        bytes.fromhex("00000005000000046162630a" + "000000070000000165")
        + struct.pack(">II", 1, len(status))
        + status
        + bytes.fromhex("0000000501000000" + "0000000701000000" + "0000000101000000" + "0000000301000000")
    )
    assert command.receive() is None


def test_streams_arrive_in_any_order_and_input_may_come_early() -> None:
    data = struct.pack(">II", 1, 2) + b"hi"
    client = Client()
    wire = Wire(client.open(1, "stdin"), data.hex(), client.open(3, "error"), client.open(5, "stdout"))
    command = SpdyCommand(spdy.SpdyConnection(wire), "v4.channel.k8s.io")
    command.open(stdin=True, stdout=True, stderr=False, tty=False)
    assert command.receive() == (STDIN, b"hi")


def test_a_terminal_waits_for_resize_and_not_for_stderr() -> None:
    client = Client()
    sizes = b'{"Width":80,"Height":24}\n{"Width":9'
    data = (struct.pack(">II", 5, len(sizes)) + sizes).hex() + (
        struct.pack(">II", 5, 14) + b'0,"Height":30}'
    ).hex()
    wire = Wire(client.open(1, "error"), client.open(3, "stdout"), client.open(5, "resize"), data)
    command = SpdyCommand(spdy.SpdyConnection(wire), "v4.channel.k8s.io")
    command.open(stdin=False, stdout=True, stderr=True, tty=True)
    assert command.receive() == (4, b'{"Width":80,"Height":24}')
    assert command.receive() == (4, b'{"Width":90,"Height":30}')


def test_a_client_that_creates_no_streams_times_out() -> None:
    command = SpdyCommand(spdy.SpdyConnection(Wire(OPEN_ERROR, silent=True)), "v4.channel.k8s.io")
    with pytest.raises(StreamTimeout, match="waiting for client to create streams"):
        command.open(stdin=True, stdout=True, stderr=False, tty=False)


def test_pings_are_echoed_and_unknown_frames_are_skipped() -> None:
    wire = Wire(
        "800300060000000400000001",
        "80030004000000080000000000000000",
        "8003000900000008" + "00000001000000ff",
    )
    assert spdy.SpdyConnection(wire).receive() is None
    assert wire.sent.hex() == "800300060000000400000001"


def test_after_a_reset_nothing_is_sent_on_the_stream() -> None:
    wire = Wire(OPEN_ERROR, "80030003000000080000000100000005", INPUT)
    connection = spdy.SpdyConnection(wire)
    opened = connection.receive()
    assert opened is not None and opened.stream.headers == {"streamtype": "error"}
    reset = connection.receive()
    assert reset is not None and reset.kind == "reset"
    wire.sent = b""
    reset.stream.write(b"late")
    reset.stream.close()
    assert wire.sent == b"" and connection.receive() is None


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        ("8002000100000000", "version 2"),
        ("80030001000000040000" + "0001", "too short"),
        ("8003000100ffffff", "a control frame of"),
        (OPEN_ERROR.replace("00000001000000000000", "00000002000000000000", 1), "next odd one"),
        (OPEN_ERROR.replace("e3c6a7c2", "e3c6a7c3"), "headers"),
        (OPEN_ERROR + OPEN_ERROR, "next odd one"),
    ],
)
def test_what_is_not_spdy_3_is_refused(bytes_: str, why: str) -> None:
    connection = spdy.SpdyConnection(Wire(bytes_))
    with pytest.raises(ProtocolError, match=why):
        while connection.receive() is not None:
            pass


def test_header_lengths_past_the_end_are_refused() -> None:
    with pytest.raises(ProtocolError):
        spdy.decode_headers(struct.pack(">II", 1, 100) + b"short")
    with pytest.raises(ProtocolError):
        spdy.decode_headers(struct.pack(">I", 2**31))
    block = spdy.encode_headers({"StreamType": "data", "port": "80"})
    assert spdy.decode_headers(block) == {"streamtype": "data", "port": "80"}


class Client:
    """Opens streams as moby/spdystream does."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(9, zdict=spdy.DICTIONARY)

    def open(self, number: int, kind: str) -> str:
        plain = spdy.encode_headers({"streamtype": kind})
        block = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return spdy.control_frame(spdy.SYN_STREAM, 0, struct.pack(">IIH", number, 0, 0) + block).hex()
