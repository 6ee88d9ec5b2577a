"""Signals by name, as callers and images write them."""

from __future__ import annotations

import signal

import pytest

from runtime import signals


@pytest.mark.parametrize("name", ["9", "KILL", "SIGKILL", "kill", " sigkill "])
def test_a_signal_has_many_names(name: str) -> None:
    assert signals.number(name) == 9


def test_realtime_signals_are_counted_from_the_first() -> None:
    assert signals.number("SIGRTMIN+3") == signal.SIGRTMIN + 3
    assert signals.number("RTMAX") == signal.SIGRTMAX
    assert signals.number("SIGRTMAX-1") == signal.SIGRTMAX - 1


@pytest.mark.parametrize(
    "name",
    ["", "0", "65", "-9", "FOO", "SIG", "_IGN", "SIG_IGN", "TERM+x", "RTMAX+1", "TERM-1", "RTMAX-64", "9x"],
)
def test_what_is_no_signal_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no such signal"):
        signals.number(name)
