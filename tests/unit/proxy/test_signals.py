"""The proxy ends on a signal whatever its main thread is doing at that moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from proxy.__main__ import end_on_signals

ENDING = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in ENDING]
    yield
    for number, handler in zip(ENDING, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_that_comes_while_the_event_is_locked_is_obeyed(number: signal.Signals) -> None:
    lock = threading.Lock()
    stop = threading.Event()
    stop._cond = threading.Condition(lock)  # type: ignore[attr-defined]
    end_on_signals(stop)
    with lock:  # as inside wait(), where a handler that called set() would wait for ever
        signal.raise_signal(number)
        assert not stop.is_set()
    assert stop.wait(60)
