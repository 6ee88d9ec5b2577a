from __future__ import annotations

import errno
from collections.abc import Callable

from kubelet_py.cli.lab.relay import MOST_BYTES, Line


class Wire:
    """Frames that wait to be received, and those that were sent."""

    def __init__(self, *frames: bytes | None) -> None:
        self.waiting = list(frames)
        self.sent: list[bytes] = []

    def receive(self) -> bytes | None:
        if not self.waiting:
            raise BlockingIOError
        return self.waiting.pop(0)

    def line(self, delay: float, send: Callable[[bytes], object] | None = None) -> Line:
        return Line(self.receive, send or self.sent.append, delay)


def test_frames_come_out_in_order_when_their_time_has_come() -> None:
    wire = Wire(b"a", b"b")
    line = wire.line(0.05)
    line.take(1.0)
    wire.waiting.append(b"c")
    line.take(1.02)
    assert line.give(1.04) == 1.05 - 1.04 and wire.sent == []
    wait = line.give(1.05)
    assert wire.sent == [b"a", b"b"]
    assert wait is not None and abs(wait - 0.02) < 1e-9
    assert line.give(2.0) is None
    assert wire.sent == [b"a", b"b", b"c"]


def test_what_is_none_of_its_business_is_left_out() -> None:
    wire = Wire(None, b"a")
    line = wire.line(0.0)
    line.take(1.0)
    line.give(1.0)
    assert wire.sent == [b"a"]


def test_a_full_line_loses_frames_and_takes_more_when_it_has_room_again() -> None:
    frame = bytes(64 * 1024)
    wire = Wire(*[frame] * (MOST_BYTES // len(frame) + 40))
    line = wire.line(1.0)
    while wire.waiting:
        line.take(0.0)
    line.give(1.0)
    assert len(wire.sent) == MOST_BYTES // len(frame)
    wire.waiting.append(b"later")
    line.take(2.0)
    line.give(3.0)
    assert wire.sent[-1] == b"later"


def test_a_far_side_that_refuses_a_frame_gets_the_next() -> None:
    sent: list[bytes] = []

    def send(frame: bytes) -> None:
        if frame == b"bad":
            raise OSError(errno.EINVAL, "bad frame")
        sent.append(frame)

    line = Wire(b"bad", b"good").line(0.0, send)
    line.take(0.0)
    line.give(0.0)
    assert sent == [b"good"]
