"""The CRI log: what `kubectl logs` and every log collector on a node read.

A line is `<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <content>`; F ends a line, P is a piece
of a line that is longer than 16 KiB or that never got its newline (as containerd writes them, and as the
kubelet's reader joins them). The pump works on whole reads, never line by line: one time stamp and one
bytes.replace per 64 kB read is ten times faster in Python, and the lines of one read did arrive together.
"""

from __future__ import annotations

import errno
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Piece = bytes | memoryview

LONGEST_LINE = 16 * 1024
MOST_PIECES = 1024  # IOV_MAX


class LineFormatter:
    """Turns the raw output of one stream into CRI lines. Holds at most one unfinished line (16 KiB).

    Lines come as pieces to be written one after the other (writev): a read of 64 kB is copied once, by the
    bytes.replace that stamps its lines. More copies of that size would cost as much as all the rest.
    """

    __slots__ = ("_clock", "_second", "_second_text", "_stream", "_tail")

    def __init__(self, stream: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._stream = stream
        self._clock = clock
        self._tail = b""
        self._second = -1
        self._second_text = ""

    def feed(self, data: bytes) -> list[Piece]:
        """All lines that `data` completes, formatted; [] when it only lengthens the unfinished one."""
        end = data.rfind(b"\n") + 1
        if end:
            head, self._tail = self._tail, data[end:]
            pieces = self._lines(head, data, end)
        else:
            self._tail += data
            pieces = []
        if len(self._tail) >= LONGEST_LINE:
            pieces.append(self._cut())
        return pieces

    def flush(self) -> list[Piece]:
        """What is left at the end of the stream: a line without newline, marked P."""
        if not self._tail:
            return []
        tail, self._tail = self._tail, b""
        return [self._prefix(b"P") + tail + b"\n"]

    def _lines(self, head: bytes, data: bytes, end: int) -> list[Piece]:
        """The lines of `head` + `data[:end]`; what follows in `data` has no newline."""
        full = self._prefix(b"F")
        if len(head) + data.find(b"\n") > LONGEST_LINE or has_long_line(data, end):
            partial = self._prefix(b"P")
            lines = (head + data[: end - 1]).split(b"\n")
            return [split_long(line, full, partial) for line in lines]
        stamped = data.replace(b"\n", b"\n" + full)
        unfinished = len(full) + len(data) - end  # stamped too early: it is not whole yet
        return [full + head, memoryview(stamped)[: len(stamped) - unfinished]]

    def _cut(self) -> bytes:
        partial = self._prefix(b"P")
        pieces = []
        while len(self._tail) >= LONGEST_LINE:
            pieces.append(partial + self._tail[:LONGEST_LINE] + b"\n")
            self._tail = self._tail[LONGEST_LINE:]
        return b"".join(pieces)

    def _prefix(self, tag: bytes) -> bytes:
        second, nanosecond = divmod(self._clock(), 1_000_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{nanosecond:09d}Z {self._stream} ".encode() + tag + b" "


def has_long_line(data: bytes, end: int) -> bool:
    """Whether some line of `data[:end]` (which ends in a newline) has more than LONGEST_LINE bytes before it.

    Looks backwards from every 16 KiB window's end, so a 64 kB read costs about four searches.
    """
    position = 0
    while position + LONGEST_LINE < end:
        newline = data.rfind(b"\n", position, position + LONGEST_LINE + 1)
        if newline < 0:
            return True
        position = newline + 1
    return False


def split_long(line: bytes, full: bytes, partial: bytes) -> bytes:
    """One line in pieces of at most LONGEST_LINE bytes: all P but the last, which is F."""
    last = max(len(line) - 1, 0) // LONGEST_LINE * LONGEST_LINE
    pieces = [partial + line[at : at + LONGEST_LINE] + b"\n" for at in range(0, last, LONGEST_LINE)]
    return b"".join(pieces) + full + line[last:] + b"\n"


class LogFile:
    """The open log of one container. Never raises on a full disk: the container must not die of it.

    Lost bytes are counted and handed to `complain` once per series of failures. When the disk took a part of
    a line, the next one begins on a line of its own.
    """

    __slots__ = ("_complain", "_descriptor", "_failing", "_torn", "lost", "path")

    def __init__(self, path: str, complain: Callable[[str], None]) -> None:
        self.path = path
        self.lost = 0
        self._complain = complain
        self._failing = self._torn = False
        self._descriptor = open_log(path) if path else -1

    def write(self, pieces: list[Piece]) -> None:
        """Append formatted lines; several appends when the disk takes only part of them."""
        if not pieces or self._descriptor < 0:
            return
        if self._torn:
            pieces = [b"\n", *pieces]
        try:
            while pieces:
                pieces = after(pieces, os.writev(self._descriptor, pieces[:MOST_PIECES]))
                self._torn = bool(pieces)
            self._failing = False
        except OSError as error:
            self.lost += sum(len(piece) for piece in pieces)
            if not self._failing:
                text = f"{error.strerror} ({self.lost} bytes lost so far)"
                self._complain(f"Could not write log {self.path}: {text}")
            self._failing = True

    def reopen(self) -> None:
        """Go on in a new file of the same name, after somebody renamed the old one. Raises OSError."""
        if not self.path:
            return
        fresh = open_log(self.path)
        self.close()
        self._descriptor = fresh

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def after(pieces: list[Piece], written: int) -> list[Piece]:
    """What is left of `pieces` without their first `written` bytes."""
    for number, piece in enumerate(pieces):
        if written < len(piece):
            return [memoryview(piece)[written:], *pieces[number + 1 :]]
        written -= len(piece)
    return []


def open_log(path: str) -> int:
    """Open for appending, 0640 as the kubelet's logs are. The folder is made when it is missing. Raises
    OSError, also for what is no file: a pipe that nobody reads would be waited for as long as it is there."""
    try:
        return _opened(path)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        return _opened(path)


def _opened(path: str) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o640)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor
