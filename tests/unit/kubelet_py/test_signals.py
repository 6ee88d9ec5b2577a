"""Signals are obeyed whatever the main thread is doing at that moment."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from kubelet_py.signals import obey

NUMBERS = (signal.SIGTERM, signal.SIGUSR1)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in NUMBERS]
    yield
    for number, handler in zip(NUMBERS, before, strict=True):
        signal.signal(number, handler)


def test_each_signal_does_what_is_its_own_though_the_main_thread_holds_the_lock() -> None:
    lock = threading.Lock()
    stop, told = threading.Event(), threading.Event()
    stop._cond = threading.Condition(lock)  # type: ignore[attr-defined]
    obey({signal.SIGTERM: stop.set, signal.SIGUSR1: told.set})
    signal.raise_signal(signal.SIGUSR1)
    assert told.wait(60)
    assert not stop.is_set()
    with lock:  # as inside wait(), where a handler that called set() would wait for ever
        signal.raise_signal(signal.SIGTERM)
        assert not stop.is_set()
    assert stop.wait(60)


def test_an_action_that_fails_does_not_keep_the_next_signal_away() -> None:
    def fail() -> None:
        raise RuntimeError("can't start new thread")

    stop = threading.Event()
    obey({signal.SIGUSR1: fail, signal.SIGTERM: stop.set})
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)
    assert stop.wait(60)
