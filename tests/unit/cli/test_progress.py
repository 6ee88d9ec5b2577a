"""The two ways in which a transfer tells how far it is."""

from __future__ import annotations

import io
import os

from kubelet_py.cli.progress import Progress

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_elsewhere_each_event_is_one_line() -> None:
    out = io.StringIO()
    with Progress(out, "downloading") as progress:
        for done in range(0, 2_000_001, 1000):
            progress(A, done, 2_000_000)
        progress(B, 5, 5)
        progress(B, 5, 5)
    assert out.getvalue().splitlines() == [
        f"{'a' * 12}: downloading 2MB",
        f"{'a' * 12}: done",
        f"{'b' * 12}: downloading 5B",
        f"{'b' * 12}: done",
    ]


def test_a_terminal_shows_bars_that_are_drawn_over_ten_times_a_second_at_most() -> None:
    out, now = Terminal(), [0.0]
    with Progress(out, "downloading", clock=lambda: now[0]) as progress:
        for done in range(1001):
            now[0] += 0.001
            progress(A, done, 1000)
    text = out.getvalue()
    assert 10 <= text.count("\r") <= 13
    assert "[===============               ]  50% 5" in text
    assert text.endswith("\x1b[1A\raaaaaaaaaaaa [" + "=" * 30 + "] 100% 1kB/1kB\x1b[K\n")


def test_a_blob_that_another_pull_fetches_is_waited_for_in_words() -> None:
    out = io.StringIO()
    with Progress(out, "downloading") as progress:
        for done in (10, 20, 30):
            progress.waiting(A, done, 30)
        progress(A, 30, 30)  # it came
        progress.waiting(B, 1, 5)
        progress(B, 2, 5)  # the other one ended early
        progress(B, 5, 5)
    assert out.getvalue().splitlines() == [
        f"{'a' * 12}: waiting for another pull (30B)",
        f"{'a' * 12}: done",
        f"{'b' * 12}: waiting for another pull (5B)",
        f"{'b' * 12}: downloading 5B",
        f"{'b' * 12}: done",
    ]
    terminal = Terminal()
    with Progress(terminal, "downloading", clock=lambda: float(len(terminal.getvalue()))) as progress:
        progress.waiting(A, 15, 30)
        progress(A, 30, 30)
    first, *_, last = terminal.getvalue().split("\x1b[K\n")[:-1]
    assert "50% 15B/30B (another pull)" in first and "100%" in last and "another" not in last


def test_bars_of_several_blobs_stand_below_each_other() -> None:
    out = Terminal()
    with Progress(out, "uploading", clock=lambda: float(len(out.getvalue()))) as progress:
        progress(A, 1, 4)
        progress(B, 1, 3)
        progress(A, 2, 4)
    assert "\x1b[1A\raaaaaaaaaaaa" in out.getvalue() and "\x1b[2A\raaaaaaaaaaaa" in out.getvalue()
    assert out.getvalue().rindex("aaaa") < out.getvalue().rindex("bbbb")


def test_more_blobs_than_the_terminal_has_lines_are_each_left_standing_once() -> None:
    """Drawn over as a whole, sixty lines would scroll by again with each of sixty layers."""
    out, names = Terminal(), [f"sha256:{number:064x}" for number in range(60, 120)]
    with Progress(out, "downloading", clock=lambda: float(len(out.getvalue()))) as progress:
        for one, other in zip(names[::2], names[1::2], strict=True):
            for done in (1, 2):
                progress(one, done, 2)
                progress(other, done, 2)
    assert [up for up in ("\x1b[1A", "\x1b[2A", "\x1b[3A") if up in out.getvalue()] == ["\x1b[1A", "\x1b[2A"]
    assert out.getvalue().count("100%") == len(names)


def test_a_terminal_without_a_size_gets_whole_lines() -> None:
    master, slave = os.openpty()
    with open(slave, "w") as out, Progress(out, "downloading") as progress:
        progress(A, 3, 3)
    assert b"3B/3B" in os.read(master, 1000)
    os.close(master)
