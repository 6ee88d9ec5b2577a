"""The CRI log: what `kubectl logs` and every log collector on a node read.

A line is `<RFC 3339 time with nanoseconds> <stdout|stderr> <P|F> <content>`; F ends a line, P is a piece
of a line that is longer than 16 KiB or that never got its newline (as containerd writes them, and as the
kubelet's reader joins them). The pump works on whole reads, never line by line: one time stamp and one
bytes.replace per 64 kB read is ten times faster in Python, and the lines of one read did arrive together.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

LONGEST_LINE = 16 * 1024


class LineFormatter:
    """Turns the raw output of one stream into CRI lines. Holds at most one unfinished line (16 KiB)."""

    __slots__ = ("_clock", "_second", "_second_text", "_stream", "_tail")

    def __init__(self, stream: str, clock: Callable[[], int] = time.time_ns) -> None:
        self._stream = stream
        self._clock = clock
        self._tail = b""
        self._second = -1
        self._second_text = ""

    def feed(self, data: bytes) -> bytes:
        """All lines that `data` completes, formatted; b"" when it only lengthens the unfinished one."""
        if self._tail:
            data = self._tail + data
        end = data.rfind(b"\n") + 1
        whole, self._tail = data[:end], data[end:]
        out = self._lines(whole) if whole else b""
        if len(self._tail) >= LONGEST_LINE:
            out += self._cut()
        return out

    def flush(self) -> bytes:
        """What is left at the end of the stream: a line without newline, marked P."""
        if not self._tail:
            return b""
        tail, self._tail = self._tail, b""
        return self._prefix(b"P") + tail + b"\n"

    def _lines(self, whole: bytes) -> bytes:
        full = self._prefix(b"F")
        if has_long_line(whole):
            partial = self._prefix(b"P")
            return b"".join(split_long(line, full, partial) for line in whole[:-1].split(b"\n"))
        return full + whole[:-1].replace(b"\n", b"\n" + full) + b"\n"

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


def has_long_line(whole: bytes) -> bool:
    """Whether some line of `whole` (which ends in a newline) has more than LONGEST_LINE bytes before it.

    Looks backwards from every 16 KiB window's end, so a 64 kB read costs about four searches.
    """
    position = 0
    while position + LONGEST_LINE < len(whole):
        newline = whole.rfind(b"\n", position, position + LONGEST_LINE + 1)
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

    Lost bytes are counted and handed to `complain` once per series of failures.
    """

    __slots__ = ("_complain", "_descriptor", "_failing", "lost", "path")

    def __init__(self, path: str, complain: Callable[[str], None]) -> None:
        self.path = path
        self.lost = 0
        self._complain = complain
        self._failing = False
        self._descriptor = open_log(path) if path else -1

    def write(self, data: bytes) -> None:
        """Append formatted lines; several appends when the disk takes only part of it."""
        if not data or self._descriptor < 0:
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
            self._failing = False
        except OSError as error:
            self.lost += len(view)
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


def open_log(path: str) -> int:
    """Open for appending, 0640 as the kubelet's logs are. The folder is made when it is missing."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o640)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        return os.open(path, flags, 0o640)
