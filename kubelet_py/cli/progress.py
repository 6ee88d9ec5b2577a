"""How far a transfer is: bars that redraw themselves on a terminal, one line per event anywhere else.

Blobs travel several at a time and report from their threads; a lock keeps their words apart. Redrawing is
held to ten times a second: a fast registry sends thousands of chunks.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_REDRAW_SECONDS = 0.1
_BAR = 30
_COLUMNS = 80  # of a terminal that does not know, as a serial line


class Progress:
    """Give the object to `pull` or `push` as their progress; leave the `with` block to finish the lines."""

    def __init__(self, out: TextIO, verb: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._verb, self._clock = out, verb, clock
        self._bars = out.isatty()
        self._lock = threading.Lock()
        self._blobs: dict[str, tuple[int, int]] = {}
        self._settled: set[str] = set()
        self._waiting: set[str] = set()  # for another pull
        self._drawn_lines = 0
        self._drawn_at = float("-inf")

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._bars and self._blobs:
                self._draw()

    def __call__(self, digest: str, done: int, size: int) -> None:
        """`done` of `size` bytes of this blob are over."""
        with self._lock:
            before = self._blobs.get(digest)
            waited = digest in self._waiting
            self._waiting.discard(digest)
            self._blobs[digest] = (done, size)
            if before == (done, size) and not waited:
                return
            if not self._bars:
                finished = done >= size
                started = before is None or (waited and not finished)
                self._tell(digest, started=started, finished=finished, size=size)
            elif done >= size or self._clock() - self._drawn_at >= _REDRAW_SECONDS:
                self._draw()

    def waiting(self, digest: str, done: int, size: int) -> None:
        """Another pull has this blob in hand, and `done` of its `size` bytes."""
        with self._lock:
            first = digest not in self._waiting
            self._waiting.add(digest)
            self._blobs[digest] = (min(done, size - 1), size)  # not over before it has been checked
            if not self._bars and first:
                text = f"{_short(digest)}: waiting for another pull ({human(size)})"
                print(text, file=self._out, flush=True)
            elif self._bars and self._clock() - self._drawn_at >= _REDRAW_SECONDS:
                self._draw()

    def _tell(self, digest: str, *, started: bool, finished: bool, size: int) -> None:
        name = _short(digest)
        if started:
            print(f"{name}: {self._verb} {human(size)}", file=self._out)
        if finished:
            print(f"{name}: done", file=self._out, flush=True)

    def _draw(self) -> None:
        self._drawn_at = self._clock()
        try:
            width = os.get_terminal_size(self._out.fileno()).columns or _COLUMNS
        except OSError:
            width = _COLUMNS
        # Only what is under way is drawn over, as an image may have more layers than the terminal has lines.
        # What is finished is written once more, above the others, and then scrolls away like any other line.
        over = {digest for digest, (done, size) in self._blobs.items() if done >= size}
        live = [digest for digest in self._blobs if digest not in over]
        fresh = [digest for digest in self._blobs if digest in over - self._settled]
        up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        lines = [
            (_line(digest, *self._blobs[digest]) + self._note(digest))[: width - 1]
            for digest in (*fresh, *live)
        ]
        self._out.write(up + "".join(f"\r{line}\x1b[K\n" for line in lines))
        self._out.flush()
        self._drawn_lines, self._settled = len(live), over

    def _note(self, digest: str) -> str:
        return " (another pull)" if digest in self._waiting else ""


def _line(digest: str, done: int, size: int) -> str:
    share = done / size if size else 1.0
    filled = int(share * _BAR)
    bar = "=" * filled + " " * (_BAR - filled)
    return f"{_short(digest)} [{bar}] {share:4.0%} {human(done)}/{human(size)}"


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]


def human(size: int) -> str:
    """Decimal units with three significant digits, as crictl prints them: 4.26MB."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.3g}{unit}"
