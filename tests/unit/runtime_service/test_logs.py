"""The CRI lines that the shim writes, against the format that kubelet and containerd agree on."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from runtime.logs import LONGEST_LINE, LineFormatter, LogFile, after, has_long_line

if TYPE_CHECKING:
    from runtime.logs import Piece

STAMP = b"2026-11-21T02:03:04.000000005Z"
CLOCK = 1795226584 * 1_000_000_000 + 5


def formatter(stream: str = "stdout") -> LineFormatter:
    return LineFormatter(stream, lambda: CLOCK)


def full(content: bytes, stream: bytes = b"stdout") -> bytes:
    return STAMP + b" " + stream + b" F " + content + b"\n"


def partial(content: bytes) -> bytes:
    return STAMP + b" stdout P " + content + b"\n"


def written(lines: LineFormatter, outputs: list[bytes]) -> bytes:
    """What comes out in all, at the end of the stream."""
    pieces: list[Piece] = []
    for output in outputs:
        pieces += lines.feed(output)
    return b"".join(pieces + lines.flush())


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([b"one\n"], full(b"one")),
        ([b"one\ntwo\n"], full(b"one") + full(b"two")),
        ([b"on", b"e\n"], full(b"one")),
        ([b"\n\n"], full(b"") + full(b"")),
        ([b"one\ntw", b"o\nthree\n"], full(b"one") + full(b"two") + full(b"three")),
        ([b"tty\r\n"], full(b"tty\r")),
        ([b"tail"], partial(b"tail")),
        ([b"a\ntail"], full(b"a") + partial(b"tail")),
        ([b"x" * LONGEST_LINE + b"\n"], full(b"x" * LONGEST_LINE)),
        ([b"x" * LONGEST_LINE + b"yz\n"], partial(b"x" * LONGEST_LINE) + full(b"yz")),
        ([b"x" * (LONGEST_LINE - 1), b"y\nz\n"], full(b"x" * (LONGEST_LINE - 1) + b"y") + full(b"z")),
        ([b"x" * (LONGEST_LINE - 1), b"yz\n"], partial(b"x" * (LONGEST_LINE - 1) + b"y") + full(b"z")),
        ([b"a\nb", b"c\n" + b"x" * LONGEST_LINE], full(b"a") + full(b"bc") + partial(b"x" * LONGEST_LINE)),
        (
            [b"a\n" + b"x" * LONGEST_LINE + b"y\nb\n"],
            full(b"a") + partial(b"x" * LONGEST_LINE) + full(b"y") + full(b"b"),
        ),
    ],
)
def test_output_becomes_cri_lines(pieces: list[bytes], expected: bytes) -> None:
    assert written(formatter(), pieces) == expected


def test_endless_line_is_cut_without_waiting_for_its_newline() -> None:
    lines = formatter()
    out = lines.feed(b"x" * (3 * LONGEST_LINE + 7))
    assert b"".join(out) == partial(b"x" * LONGEST_LINE) * 3
    assert lines.flush() == [partial(b"x" * 7)]


def test_stream_is_named() -> None:
    assert written(formatter("stderr"), [b"e\n"]) == full(b"e", b"stderr")


def test_nothing_is_lost_whatever_the_pieces() -> None:
    text = b"".join(b"y" * (n * 997 % 40_000) + b"\n" for n in range(40))
    for size in (1000, 4096, 65536):
        out = written(formatter(), [text[at : at + size] for at in range(0, len(text), size)])
        joined = b""
        for line in out.splitlines():
            _, _, tag, content = line.split(b" ", 3)
            joined += content + (b"\n" if tag == b"F" else b"")
        assert joined == text


def test_long_lines_are_noticed_wherever_they_stand() -> None:
    short = b"s" * 100 + b"\n"
    long = b"l" * (LONGEST_LINE + 1) + b"\n"
    for text, expected in (
        (short * 600, False),
        (b"l" * LONGEST_LINE + b"\n", False),
        (long, True),
        (short * 300 + long, True),
        (long + short * 300, True),
    ):
        assert has_long_line(text, len(text)) is expected
    assert not has_long_line(short + long, len(short)), "only up to the end that is asked for"


def test_what_a_short_write_leaves_is_known_to_the_byte() -> None:
    pieces: list[Piece] = [b"abc", memoryview(b"defg"), b"h"]
    for written_bytes in range(9):
        assert b"".join(after(pieces, written_bytes)) == b"abcdefgh"[written_bytes:]


def test_log_goes_on_in_a_new_file_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "0.log"
    log = LogFile(str(path), print)
    log.write([b"old\n"])
    path.rename(tmp_path / "0.log.1")
    log.reopen()
    log.write([b"new\n"])
    log.close()
    assert (tmp_path / "0.log.1").read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"
    assert path.stat().st_mode & 0o777 == 0o640 & ~os_umask()


def test_full_disk_is_reported_once_and_survived(tmp_path: Path) -> None:
    said: list[str] = []
    log = LogFile(str(tmp_path / "0.log"), said.append)
    with open("/dev/full", "wb", 0) as full:  # which is no file, and so is refused by its name
        os.dup2(full.fileno(), log._descriptor)
    log.write([b"a\n"])
    log.write([b"b\n"])
    log.close()
    assert len(said) == 1
    assert "No space left" in said[0]
    assert log.lost == 4


def test_line_that_a_full_disk_cut_does_not_run_into_the_next(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "0.log"
    log = LogFile(str(path), said.append)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        log.write([b"first\n", b"second\n"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    log.write([b"third\n"])
    log.close()
    assert path.read_bytes() == b"first\nseco\nthird\n"
    assert log.lost == len("nd\n")
    assert "File too large" in said[0]


def os_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
