"""When a loop rests: not while it is new, soon after everything later."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator

import pytest

from runtime.loop import IDLE_SECONDS, OFTEN_SECONDS, Loop, Rhythm

LATE = 2 * IDLE_SECONDS  # a slow machine makes the waits longer, never shorter
LONG = 3600.0


class Sleeper:
    """A loop that is woken by its own rests, until there were `count` of them."""

    def __init__(self, no_rest: float, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rests: list[float] = []
        self._count = count
        self._reader, self._writer = os.pipe()
        self.loop = Loop(clock, self._rest, no_rest)
        self.loop.watch(self._reader, self._wake)

    def _rest(self, descriptor: int, timeout: Callable[[], int]) -> None:
        self.rests.append(time.monotonic())
        os.write(self._writer, b"!")

    def _wake(self, mask: int) -> None:
        os.read(self._reader, 1)
        if len(self.rests) == self._count:
            self.loop.stop()

    def close(self) -> None:
        self.loop.close()
        os.close(self._reader)
        os.close(self._writer)


@pytest.fixture
def sleepers() -> Iterator[list[Sleeper]]:
    made: list[Sleeper] = []
    yield made
    for sleeper in made:
        sleeper.close()


def test_no_rest_while_it_is_new_however_long_nothing_happens(sleepers: list[Sleeper]) -> None:
    began = time.monotonic()
    sleepers.append(Sleeper(LATE, 2))
    sleepers[0].loop.run()
    first, second = sleepers[0].rests
    assert first - began >= LATE and second - first >= IDLE_SECONDS


def test_events_do_not_put_off_the_first_rest(sleepers: list[Sleeper]) -> None:
    sleepers.append(Sleeper(LONG, 1, clock=iter([0.0, LONG]).__next__))
    sleepers[0].loop.run()
    assert len(sleepers[0].rests) == 1


def test_who_is_told_to_rest_does_not_wait(sleepers: list[Sleeper]) -> None:
    sleepers.append(Sleeper(LONG, 1))
    sleepers[0].loop.tired = True
    sleepers[0].loop.run()
    assert len(sleepers[0].rests) == 1


def test_what_is_expected_puts_off_a_rest(sleepers: list[Sleeper]) -> None:
    sleepers.append(Sleeper(0.0, 1))
    began = time.monotonic()
    sleepers[0].loop.stay_awake(2 * LATE)
    sleepers[0].loop.stay_awake(LATE)
    sleepers[0].loop.run()
    assert sleepers[0].rests[0] - began >= 2 * LATE


def test_only_what_comes_often_is_waited_for() -> None:
    rhythm = Rhythm()
    assert rhythm.beat(100.0) == 0.0
    assert [rhythm.beat(101.0), rhythm.beat(103.0)] == [2.0, 4.0]
    assert rhythm.beat(103.0 + OFTEN_SECONDS) == 0.0
    assert rhythm.beat(104.0 + OFTEN_SECONDS) == 2.0
