from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubelet_py.server.errors import HttpError
from kubelet_py.server.logs import (
    LogFilter,
    LogOptions,
    Watch,
    nanoseconds,
    parse_options,
    read_log,
    tail_offset,
)

LINES = (
    b"2026-11-21T02:00:00.000000000Z stdout F one\n"
    b"2026-11-21T02:00:01.000000000Z stdout P tw\n"
    b"2026-11-21T02:00:01.000000001Z stderr P o\n"
    b"2026-11-21T02:00:01.000000002Z stdout F  and a half\n"
    b"2026-11-21T02:00:02.500000000Z stderr F \n"
)


def shown(options: LogOptions, data: bytes = LINES, step: int = 11) -> bytes:
    log_filter = LogFilter(options)
    out = b"".join(log_filter.feed(data[i : i + step]) for i in range(0, len(data), step))
    return out + log_filter.finish()


@pytest.mark.parametrize("step", [1, 11, 4096])
def test_pieces_are_joined_and_empty_lines_kept(step: int) -> None:
    assert shown(LogOptions(), step=step) == b"one\ntwo and a half\n\n"


def test_timestamps_stand_before_lines_not_before_pieces() -> None:
    assert shown(LogOptions(timestamps=True)) == (
        b"2026-11-21T02:00:00.000000000Z one\n"
        b"2026-11-21T02:00:01.000000000Z two and a half\n"
        b"2026-11-21T02:00:02.500000000Z \n"
    )


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        (b"2026-11-21T02:00:02Z", b"\n"),
        (b"2026-11-21T02:00:02.5Z", b"\n"),
        (b"2026-11-21T02:00:02.500000001Z", b""),
        (b"2026-11-21T03:00:02+01:00", b"\n"),
        (b"2026-11-21T02:00:01.000000002Z", b" and a half\n\n"),
    ],
)
def test_since_drops_older_lines(moment: bytes, expected: bytes) -> None:
    assert shown(LogOptions(since=nanoseconds(moment))) == expected


@pytest.mark.parametrize(
    ("limit", "expected"), [(1, b"o"), (6, b"one\ntw"), (1000, b"one\ntwo and a half\n\n")]
)
def test_the_output_is_cut_at_the_limit(limit: int, expected: bytes) -> None:
    assert shown(LogOptions(limit=limit)) == expected


def test_lines_that_are_not_of_the_format_are_left_out() -> None:
    assert shown(LogOptions(), b"\0\0\0\nhalf a li\n" + LINES[:44]) == b"one\n"


def test_a_last_line_without_newline_is_shown_at_the_end() -> None:
    assert shown(LogOptions(), LINES[:43]) == b"one\n"


@pytest.mark.parametrize(
    ("lines", "first"),
    [(0, None), (1, b"2026-11-21T02:00:02"), (2, b"2026-11-21T02:00:01.000000002"), (99, LINES[:19])],
)
def test_the_tail_begins_at_a_line(tmp_path: Path, lines: int, first: bytes | None) -> None:
    file = tmp_path / "log"
    file.write_bytes(LINES)
    with open(file, "rb") as handle:
        offset = tail_offset(handle.fileno(), lines)
    assert offset == len(LINES) if first is None else LINES[offset:].startswith(first)


def test_the_tail_of_a_long_file_is_found_across_blocks(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"".join(b"%0999d\n" % number for number in range(1000)) + b"unfinished")
    with open(file, "rb") as handle:
        offset = tail_offset(handle.fileno(), 201)
    assert file.read_bytes()[offset:].split(b"\n")[0] == b"%0999d" % 800


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ({}, LogOptions()),
        ({"follow": ["true"], "previous": ["1"], "timestamps": [""]}, LogOptions(True, True, True)),
        ({"follow": ["false"], "tailLines": ["0"], "limitBytes": ["5"]}, LogOptions(tail=0, limit=5)),
        ({"sinceSeconds": ["60"]}, LogOptions(since=40 * 10**9)),
        ({"sinceTime": ["1970-01-01T00:00:07Z"]}, LogOptions(since=7 * 10**9)),
        ({"tail": ["all"]}, LogOptions()),
    ],
)
def test_options_are_read_as_upstream_reads_them(query: dict[str, list[str]], options: LogOptions) -> None:
    assert parse_options(query, 100.0) == options


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"sinceSeconds": ["9223372036854775807"]}, b"one\ntwo and a half\n\n"),
        ({"sinceSeconds": ["99999999999"]}, b"one\ntwo and a half\n\n"),
        ({"sinceTime": ["0001-01-01T00:00:00+10:00"]}, b"one\ntwo and a half\n\n"),
        ({"sinceTime": ["9999-12-31T23:59:59-10:00"]}, b""),
    ],
)
def test_times_outside_the_calendar_are_before_or_after_all(
    query: dict[str, list[str]], expected: bytes
) -> None:
    assert shown(parse_options(query, 1.8e9)) == expected


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"tailLines": ["x"]}, 400),
        ({"tailLines": ["-1"]}, 422),
        ({"limitBytes": ["0"]}, 422),
        ({"sinceSeconds": ["0"]}, 422),
        ({"sinceSeconds": ["9" * 400]}, 400),
        ({"sinceTime": ["yesterday"]}, 400),
        ({"sinceTime": ["2026-11-21T02:00:00"]}, 400),
        ({"sinceTime": ["1970-01-01T00:00:07Z"], "sinceSeconds": ["3"]}, 422),
        ({"stream": ["Stderr"]}, 422),
    ],
)
def test_bad_options_are_refused_by_name(query: dict[str, list[str]], code: int) -> None:
    with pytest.raises(HttpError) as caught:
        parse_options(query, 100.0)
    assert caught.value.code == code and next(iter(query)) in caught.value.message


class Steps(Watch):
    """A watch whose every wait makes the next thing happen."""

    def __init__(self, *steps: object) -> None:
        self._steps = iter(steps)

    def wait(self, path: Path) -> None:
        step = next(self._steps)
        assert callable(step)
        step()


def line(text: str) -> bytes:
    return f"2026-11-21T02:00:00.000000000Z stdout F {text}\n".encode()


def append(file: Path, text: str) -> None:
    with open(file, "ab") as handle:
        handle.write(line(text))


def test_following_reads_what_is_written_before_the_container_was_seen_to_end(tmp_path: Path) -> None:
    """The last words: written after the file was read to its end, just before the container ended."""
    file, alive = tmp_path / "log", [True]
    file.write_bytes(line("a"))

    def last_words() -> None:
        append(file, "c")
        alive[0] = False

    watch = Steps(lambda: append(file, "b"), last_words)
    found = read_log(file, LogOptions(follow=True), running=lambda: alive[0], gone=lambda: False, watch=watch)
    assert b"".join(found) == b"a\nb\nc\n"


def test_following_goes_on_in_the_new_file_after_rotation(tmp_path: Path) -> None:
    file, alive = tmp_path / "log", [True]
    file.write_bytes(line("a"))

    def rotate() -> None:
        append(file, "b")
        os.rename(file, tmp_path / "log.1")
        append(file, "c")

    watch = Steps(rotate, lambda: alive.clear() or alive.append(False))
    found = read_log(file, LogOptions(follow=True), running=lambda: alive[0], gone=lambda: False, watch=watch)
    assert b"".join(found) == b"a\nb\nc\n"


def test_following_ends_when_the_client_has_gone(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(line("a"))
    found = read_log(file, LogOptions(follow=True), running=lambda: True, gone=lambda: True, watch=Steps())
    assert b"".join(found) == b"a\n"


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """E20: a log path replaced by a symbolic link must not show files of the host."""
    (tmp_path / "log").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic links"):
        next(iter(read_log(tmp_path / "log", LogOptions(), running=lambda: False, gone=lambda: False)))


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch(seconds=5)
    yield made
    made.close()


def test_a_write_wakes_the_watch(tmp_path: Path, watch: Watch) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"")
    watch.wait(file)  # the first one only begins to watch
    woken = threading.Event()

    def wait() -> None:
        watch.wait(file)
        woken.set()

    thread = threading.Thread(target=wait)
    thread.start()
    append(file, "x")
    assert woken.wait(2)
    thread.join()
