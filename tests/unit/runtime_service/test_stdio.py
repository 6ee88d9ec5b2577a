"""Slow readers and writers on the shim's loop: nobody waits for them, nothing is lost that should not be."""

from __future__ import annotations

import os
import socket

from runtime.loop import Loop
from runtime.stdio import BEHIND, FULL, Connection, Input, Output
from runtime.streams import STDOUT, FrameReader, pack


def turn(loop: Loop, done: object, limit: int = 20_000) -> None:
    """Run the loop until `done()`; a timer keeps it from waiting for ever."""
    for _ in range(limit):
        if done():  # type: ignore[operator]
            return
        loop.call_later(0, lambda: None)
        loop.step()
    raise AssertionError("the loop did not get there")


def test_output_is_delivered_and_its_end_told_once() -> None:
    loop, got, ends = Loop(), [], []
    read, write = os.pipe()
    output = Output(loop, read, got.append, lambda: ends.append(1))
    os.write(write, b"hello")
    turn(loop, lambda: got)
    os.close(write)
    turn(loop, lambda: ends)
    output.close()
    assert (got, ends) == ([b"hello"], [1])


def test_paused_output_stays_in_the_pipe() -> None:
    loop, got = Loop(), []
    read, write = os.pipe()
    output = Output(loop, read, got.append, lambda: None)
    output.pause()
    os.write(write, b"later")
    os.close(write)
    for _ in range(5):
        loop.call_later(0, lambda: None)
        loop.step()
    assert got == []
    output.resume()
    turn(loop, lambda: got)
    output.close()


def test_drain_takes_what_an_ended_process_left() -> None:
    loop, got = Loop(), []
    read, write = os.pipe()
    output = Output(loop, read, got.append, lambda: None)
    os.write(write, b"x" * 65536)
    output.drain()
    assert b"".join(got) == b"x" * 65536
    output.close()
    os.close(write)


def test_input_waits_for_a_slow_process_and_then_ends() -> None:
    loop, drained = Loop(), []
    read, write = os.pipe()
    source = Input(loop, write, lambda: drained.append(1))
    data = os.urandom(FULL + 100_000)
    source.write(data)
    assert source.full
    source.end()
    got = bytearray()
    while len(got) < len(data):
        got += os.read(read, 65536)
        loop.call_later(0, lambda: None)
        loop.step()
    turn(loop, lambda: drained)
    assert bytes(got) == data
    assert os.read(read, 1) == b""
    os.close(read)


def test_input_nobody_reads_is_dropped_quietly() -> None:
    read, write = os.pipe()
    source = Input(Loop(), write)
    os.close(read)
    source.write(b"lost")
    source.write(b"lost too")
    assert not source.full


def test_client_that_falls_far_behind_is_disconnected() -> None:
    loop, closed = Loop(), []
    ours, theirs = socket.socketpair()
    connection = Connection(loop, ours, lambda channel, payload: None)
    connection.on_closed = lambda: closed.append(1)
    for _ in range(BEHIND // 65536 + 8):
        connection.send(STDOUT, b"x" * 65536)
    assert closed == [1]
    assert not connection.open
    theirs.close()


def test_slow_client_gets_everything_and_then_the_end() -> None:
    loop, drained = Loop(), []
    ours, theirs = socket.socketpair()
    connection = Connection(loop, ours, lambda channel, payload: None)
    connection.on_drained = lambda: drained.append(1)
    data = os.urandom(FULL * 2)
    connection.send(STDOUT, data)
    assert connection.full
    connection.end()
    reader, got = FrameReader(), []
    while not got:
        loop.call_later(0, lambda: None)
        loop.step()
        got += list(reader.feed(theirs.recv(65536)))
    assert got == [(STDOUT, data)]
    assert theirs.recv(1) == b""
    theirs.close()


def test_frames_sent_before_a_hang_up_are_still_read() -> None:
    loop, got = Loop(), []
    ours, theirs = socket.socketpair()
    connection = Connection(loop, ours, lambda channel, payload: got.append((channel, payload)))
    theirs.sendall(pack(0, b"a") + pack(255, b"\0"))
    theirs.close()
    turn(loop, lambda: not connection.open)
    assert got == [(0, b"a"), (255, b"\0")]


def test_hang_up_is_noticed_while_reading_is_paused() -> None:
    loop = Loop()
    ours, theirs = socket.socketpair()
    connection = Connection(loop, ours, lambda channel, payload: None)
    connection.pause_reading()
    theirs.close()
    turn(loop, lambda: not connection.open)


def test_cancelled_timer_does_nothing() -> None:
    loop, fired = Loop(), []
    loop.call_later(0, lambda: fired.append("cancelled")).cancel()
    loop.call_later(0, lambda: fired.append("fired"))
    turn(loop, lambda: fired)
    assert fired == ["fired"]
