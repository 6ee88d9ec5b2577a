"""What `kubectl logs` shows: a container's log file, filtered, and followed while it grows.

The runtime writes the CRI format, one line per write of the container:
`2026-11-21T02:00:00.123456789Z stdout F text`. `P` instead of `F` marks a piece of a line that was too
long or not finished; pieces are joined by leaving out the newline, and only the first one of a line gets a
timestamp. Meaning and order of the options are those of upstream's ReadLogs (kuberuntime/logs): first
`tailLines` picks where to start, counting lines of the file, then `since` drops older ones, and
`limitBytes` cuts the output.

Following ends when the container has ended *and* the file has been read to its end, in that order: asked
the other way round, the last words of a container would be lost.

A log that is full is renamed (`0.log` → `0.log.20261121-031500`) and goes on in a new file. The new file's
existence says that the old one is complete; so it is read to its end once more, and then comes its successor,
which may itself have been renamed already when the reader is slow.
"""

from __future__ import annotations

import ctypes
import os
import select
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kubelet_py.server.errors import HttpError

_BLOCK = 1 << 16
_IN_MODIFY, _IN_ATTRIB, _IN_MOVE_SELF, _IN_DELETE_SELF = 0x2, 0x4, 0x800, 0x400
_IN_CLOEXEC, _IN_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_CANONICAL = len("2026-11-21T02:00:00.123456789Z")
_LATEST = 253402300799 * 10**9  # the last second of the year 9999

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class LogOptions:
    """The query of a log request; `since` is nanoseconds since the epoch, `tail` and `limit` None for all."""

    follow: bool = False
    previous: bool = False
    timestamps: bool = False
    since: int = 0
    tail: int | None = None
    limit: int | None = None


def parse_options(query: Mapping[str, Sequence[str]], now: float) -> LogOptions:
    """Read a query string (names as in v1.PodLogOptions). Raises HttpError naming the option: 400 for what
    cannot be read, 422 for what may not be asked for, as upstream."""
    if _first(query, "stream"):
        raise HttpError(422, "invalid stream: the output and the errors of a container are one log here")
    tail = _integer(query, "tailLines", 0)
    if tail is None and _first(query, "tail") not in ("", "all"):
        tail = _integer(query, "tail", 0)
    seconds, moment = _integer(query, "sinceSeconds", 1), _first(query, "sinceTime")
    if seconds is not None and moment:
        raise HttpError(422, "at most one of sinceTime or sinceSeconds may be specified")
    since = int((now - seconds) * 1e9) if seconds is not None else 0
    if moment:
        try:
            since = nanoseconds(moment.encode())
        except ValueError as error:
            raise HttpError(400, f"invalid sinceTime {moment!r}: {error}") from error
    return LogOptions(
        follow=_boolean(query, "follow"),
        previous=_boolean(query, "previous"),
        timestamps=_boolean(query, "timestamps"),
        since=min(max(since, 0), _LATEST),  # no line is older, or younger; the calendar has an end
        tail=tail,
        limit=_integer(query, "limitBytes", 1),
    )


def _first(query: Mapping[str, Sequence[str]], name: str) -> str:
    values = query.get(name)
    return values[0] if values else ""


def _boolean(query: Mapping[str, Sequence[str]], name: str) -> bool:
    # As Kubernetes decodes query parameters: present and not "false" or "0" is true.
    return name in query and _first(query, name).lower() not in ("false", "0")


def _integer(query: Mapping[str, Sequence[str]], name: str, least: int) -> int | None:
    text = _first(query, name)
    if not text:
        return None
    try:
        value = int(text)
    except ValueError as error:
        raise HttpError(400, f"invalid {name} {text!r}: must be a number") from error
    if value >= 1 << 63:
        raise HttpError(400, f"invalid {name}: value out of range")
    if value < least:
        raise HttpError(422, f"invalid {name} {text!r}: must be at least {least}")
    return value


def nanoseconds(stamp: bytes) -> int:
    """An RFC 3339 time with up to nine digits of fraction, in nanoseconds since the epoch; ValueError."""
    text = stamp.decode("ascii", "replace")
    head, dot, rest = text.partition(".")
    digits = ""
    if dot:
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        head += rest[len(digits) :]
    if not head.endswith(("Z", "z")) and "+" not in head[10:] and "-" not in head[10:]:
        raise ValueError("no time zone")
    whole = datetime.fromisoformat(head)
    return int(whole.timestamp()) * 10**9 + int(digits[:9].ljust(9, "0") or "0")


class LogFilter:
    """Turns bytes of a log file into the bytes that the client sees; pure."""

    def __init__(self, options: LogOptions) -> None:
        self._timestamps = options.timestamps
        self._since = options.since
        self._since_text = _canonical(options.since) if options.since else b""
        self._left = options.limit
        self._rest = b""
        self._line_start = True

    @property
    def full(self) -> bool:
        """True once limitBytes have been given out."""
        return self._left is not None and self._left <= 0

    def feed(self, data: bytes) -> bytes:
        """The output for the next bytes of the file; an unfinished line waits for its rest."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        out: list[bytes] = []
        for line in lines:
            self._line(line, out)
        return self._limited(b"".join(out))

    def finish(self) -> bytes:
        """The output for a last line that never got its newline."""
        rest, self._rest = self._rest, b""
        out: list[bytes] = []
        if rest:
            self._line(rest, out)
        return self._limited(b"".join(out))

    def _limited(self, text: bytes) -> bytes:
        if self._left is None:
            return text
        text = text[: max(self._left, 0)]
        self._left -= len(text)
        return text

    def _line(self, line: bytes, out: list[bytes]) -> None:
        fields = line.split(b" ", 3)
        if len(fields) < 4 or fields[1] not in (b"stdout", b"stderr"):
            return  # not a line of ours, or one that a crash of the machine cut in two
        stamp, tags, content = fields[0], fields[2], fields[3]
        if self._since_text and self._older(stamp):
            return
        if self._timestamps and self._line_start:
            out.append(stamp + b" ")
        out.append(content)
        partial = tags.split(b":", 1)[0] == b"P"
        if not partial:
            out.append(b"\n")
        self._line_start = not partial

    def _older(self, stamp: bytes) -> bool:
        if len(stamp) == _CANONICAL and stamp.endswith(b"Z"):
            return stamp < self._since_text
        try:
            return nanoseconds(stamp) < self._since
        except ValueError:
            return False


def _canonical(moment: int) -> bytes:
    seconds, fraction = divmod(moment, 10**9)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{whole}.{fraction:09d}Z".encode()


def tail_offset(descriptor: int, lines: int) -> int:
    """Where in the file its last `lines` lines begin; an unfinished last line counts as one."""
    size = os.fstat(descriptor).st_size
    if lines <= 0:
        return size
    position, needed = size, lines
    while position > 0:
        start = max(0, position - _BLOCK)
        block = os.pread(descriptor, position - start, start)
        end = len(block)
        if position == size and block.endswith(b"\n"):
            end -= 1
        while (found := block.rfind(b"\n", 0, end)) >= 0:
            needed -= 1
            if needed == 0:
                return start + found + 1
            end = found
        position = start
    return 0


def read_log(
    path: Path,
    options: LogOptions,
    *,
    running: Callable[[], bool],
    gone: Callable[[], bool],
    watch: Watch | None = None,
) -> Generator[bytes, None, None]:
    """The log's output in pieces; with `follow` until the container has ended or the client has `gone`.

    Raises FileNotFoundError when there is no log. A rotated file is read to its end, then the new one.
    """
    log_filter = LogFilter(options)
    descriptor = _open_latest(path)
    try:
        if options.tail is not None:
            os.lseek(descriptor, tail_offset(descriptor, options.tail), os.SEEK_SET)
        while True:
            alive = options.follow and running()
            while data := os.read(descriptor, _BLOCK):
                if text := log_filter.feed(data):
                    yield text
                if log_filter.full:
                    return
            replaced = _successor(path, descriptor) if options.follow else None
            if replaced is not None:
                yield from _rest(descriptor, log_filter)
                os.close(descriptor)
                descriptor = replaced
            elif not alive:
                if text := log_filter.finish():
                    yield text
                return
            elif gone():
                return
            else:
                (watch or Watch.none()).wait(path)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # Containers cannot reach the log folder, but a link planted there must not read files of the host (E20).
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)


def _open_latest(path: Path) -> int:
    """The current file. In the middle of a rotation that is the renamed one, for a moment."""
    try:
        return _open(path)
    except FileNotFoundError:
        renamed = sorted(path.parent.glob(f"{path.name}.[0-9]*"))
        if not renamed:
            raise
        return _open(renamed[-1])


def _rest(descriptor: int, log_filter: LogFilter) -> Generator[bytes, None, None]:
    while not log_filter.full and (data := os.read(descriptor, _BLOCK)):
        if text := log_filter.feed(data):
            yield text


def _successor(path: Path, descriptor: int) -> int | None:
    """The file that was begun after this one, open; None while this is the current one."""
    try:
        current = _open(path)
    except FileNotFoundError:
        return None  # in the middle of a rotation
    own = os.fstat(descriptor).st_ino
    if os.fstat(current).st_ino == own:
        os.close(current)
        return None
    # Names end in the time of their renaming. If ours is gone, all that are left came after it.
    older = sorted(path.parent.glob(f"{path.name}.[0-9]*"))
    inodes = [_inode(file) for file in older]
    later = older[inodes.index(own) + 1 :] if own in inodes else older
    for file in later:
        try:
            found = _open(file)
        except FileNotFoundError:
            continue  # removed at this moment
        os.close(current)
        return found
    return current


def _inode(file: Path) -> int:
    try:
        return file.lstat().st_ino
    except FileNotFoundError:
        return -1


class Watch:
    """Waits for a file to change (inotify), for the client to say something, or for a moment to pass."""

    def __init__(self, client: int | None = None, *, seconds: float = 0.2) -> None:
        self._client, self._seconds = client, seconds
        self._inotify = _libc.inotify_init1(_IN_CLOEXEC | _IN_NONBLOCK)
        self._watched: tuple[Path, int] | None = None
        if self._inotify < 0:
            # Watches are a limited resource of the host; looking ten times a second serves as well.
            self._seconds = 0.1

    @classmethod
    def none(cls) -> Watch:
        """Without inotify: only waits."""
        made = cls.__new__(cls)
        made._client, made._seconds, made._inotify, made._watched = None, 0.1, -1, None
        return made

    def wait(self, path: Path) -> None:
        """Return when `path` may have changed, the client's socket is readable, or time is up."""
        poller = select.poll()
        if self._client is not None:
            poller.register(self._client, select.POLLIN)
        fresh = self._add(path)
        if self._inotify >= 0:
            poller.register(self._inotify, select.POLLIN)
        if fresh:
            return  # what was written before the watch began would not wake us
        poller.poll(self._seconds * 1000)
        if self._inotify >= 0:
            try:
                os.read(self._inotify, 4096)
            except BlockingIOError:
                pass  # it was the client or the time

    def close(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1

    def _add(self, path: Path) -> bool:
        try:
            inode = path.stat().st_ino
        except FileNotFoundError:
            time.sleep(0.01)  # in the middle of a rotation
            return False
        if self._inotify < 0 or self._watched == (path, inode):
            return False
        mask = _IN_MODIFY | _IN_ATTRIB | _IN_MOVE_SELF | _IN_DELETE_SELF
        _libc.inotify_add_watch(self._inotify, os.fsencode(path), mask)
        self._watched = (path, inode)
        return True
