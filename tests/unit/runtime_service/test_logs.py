"""The CRI lines that the shim writes, against the format that kubelet and containerd agree on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.logs import LONGEST_LINE, LineFormatter, LogFile, has_long_line

STAMP = b"2026-11-21T02:03:04.000000005Z"
CLOCK = 1795226584 * 1_000_000_000 + 5


def formatter(stream: str = "stdout") -> LineFormatter:
    return LineFormatter(stream, lambda: CLOCK)


def full(content: bytes, stream: bytes = b"stdout") -> bytes:
    return STAMP + b" " + stream + b" F " + content + b"\n"


def partial(content: bytes) -> bytes:
    return STAMP + b" stdout P " + content + b"\n"


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
        (
            [b"a\n" + b"x" * LONGEST_LINE + b"y\nb\n"],
            full(b"a") + partial(b"x" * LONGEST_LINE) + full(b"y") + full(b"b"),
        ),
    ],
)
def test_output_becomes_cri_lines(pieces: list[bytes], expected: bytes) -> None:
    lines = formatter()
    assert b"".join(map(lines.feed, pieces)) + lines.flush() == expected


def test_endless_line_is_cut_without_waiting_for_its_newline() -> None:
    lines = formatter()
    out = lines.feed(b"x" * (3 * LONGEST_LINE + 7))
    assert out == partial(b"x" * LONGEST_LINE) * 3
    assert lines.flush() == partial(b"x" * 7)


def test_stream_is_named() -> None:
    assert formatter("stderr").feed(b"e\n") == full(b"e", b"stderr")


def test_nothing_is_lost_whatever_the_pieces() -> None:
    text = b"".join(b"y" * (n * 997 % 40_000) + b"\n" for n in range(40))
    for size in (1000, 4096, 65536):
        lines = formatter()
        out = b"".join(lines.feed(text[at : at + size]) for at in range(0, len(text), size)) + lines.flush()
        joined = b""
        for line in out.splitlines():
            _, _, tag, content = line.split(b" ", 3)
            joined += content + (b"\n" if tag == b"F" else b"")
        assert joined == text


def test_long_lines_are_noticed_wherever_they_stand() -> None:
    short = b"s" * 100 + b"\n"
    long = b"l" * (LONGEST_LINE + 1) + b"\n"
    assert not has_long_line(short * 600)
    assert not has_long_line(b"l" * LONGEST_LINE + b"\n")
    assert has_long_line(long)
    assert has_long_line(short * 300 + long)
    assert has_long_line(long + short * 300)


def test_log_goes_on_in_a_new_file_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "pod" / "0.log"
    log = LogFile(str(path), print)
    log.write(b"old\n")
    path.rename(tmp_path / "0.log.1")
    log.reopen()
    log.write(b"new\n")
    log.close()
    assert (tmp_path / "0.log.1").read_bytes() == b"old\n"
    assert path.read_bytes() == b"new\n"
    assert path.stat().st_mode & 0o777 == 0o640 & ~os_umask()


def test_full_disk_is_reported_once_and_survived() -> None:
    said: list[str] = []
    log = LogFile("/dev/full", said.append)
    log.write(b"a\n")
    log.write(b"b\n")
    log.close()
    assert len(said) == 1
    assert "No space left" in said[0]
    assert log.lost == 4


def os_umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
