"""The frames between agent and shim."""

from __future__ import annotations

import socket
import threading

import pytest

from runtime.streams import CLOSE, LARGEST, REQUEST, STDIN, STDOUT, FrameError, FrameReader, Stream, pack


def pair() -> tuple[Stream, socket.socket]:
    ours, theirs = socket.socketpair()
    return Stream(ours), theirs


def test_frames_survive_any_cut() -> None:
    frames = [(0, b""), (1, b"abc"), (255, b"\0"), (2, b"x" * 70000)]
    wire = b"".join(pack(channel, payload) for channel, payload in frames)
    for size in (1, 3, 5, 8, 4096):
        reader = FrameReader()
        got = [frame for at in range(0, len(wire), size) for frame in reader.feed(wire[at : at + size])]
        assert got == frames


def test_oversized_frame_is_refused() -> None:
    with pytest.raises(FrameError, match="announced"):
        list(FrameReader().feed(b"\1" + (LARGEST + 1).to_bytes(4, "big")))


def test_stream_splits_large_writes_and_keeps_order() -> None:
    stream, peer = pair()
    data = bytes(range(256)) * 1000
    sender = threading.Thread(target=lambda: (stream.send(STDIN, data), stream.close_channel(STDIN)))
    sender.start()
    reader = FrameReader()
    got, frames = b"", []
    while not frames or frames[-1][0] != CLOSE:
        frames += list(reader.feed(peer.recv(4096)))
    sender.join()
    got = b"".join(payload for channel, payload in frames if channel == STDIN)
    assert got == data
    assert frames[-1] == (CLOSE, bytes((STDIN,)))
    stream.close()
    peer.close()


def test_a_large_request_is_one_frame() -> None:
    stream, peer = pair()
    data = b"x" * 200_000
    sender = threading.Thread(target=lambda: (stream.send(REQUEST, data), stream.close()))
    sender.start()
    reader, frames = FrameReader(), []
    while piece := peer.recv(65536):
        frames += list(reader.feed(piece))
    sender.join()
    assert frames == [(REQUEST, data)]
    peer.close()


def test_receive_reads_one_frame_and_then_the_end() -> None:
    stream, peer = pair()
    peer.sendall(pack(STDOUT, b"hello") + pack(STDOUT))
    peer.close()
    assert stream.receive() == (STDOUT, b"hello")
    assert stream.receive() == (STDOUT, b"")
    assert stream.receive() is None
    stream.close()


def test_half_a_frame_is_the_end() -> None:
    stream, peer = pair()
    peer.sendall(pack(STDOUT, b"hello")[:7])
    peer.close()
    assert stream.receive() is None
    stream.close()


def test_reader_that_comes_after_close_is_told_the_end() -> None:
    stream, peer = pair()
    stream.close()
    assert stream.receive() is None
    peer.close()


def test_close_wakes_a_blocked_reader() -> None:
    stream, peer = pair()
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.append(stream.receive()))
    reader.start()
    stream.close()
    reader.join(5)
    assert got == [None]
    peer.close()
