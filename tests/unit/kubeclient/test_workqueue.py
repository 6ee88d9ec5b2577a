from __future__ import annotations

import threading

from kubeclient.workqueue import WorkQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_waiting_key_is_queued_once() -> None:
    queue = WorkQueue()
    for key in ("a", "b", "a"):
        queue.add(key)
    assert [queue.get(0), queue.get(0), queue.get(0)] == ["a", "b", None]


def test_a_key_in_work_comes_again_after_done_and_not_before() -> None:
    queue = WorkQueue()
    queue.add("a")
    assert queue.get(0) == "a"
    queue.add("a")
    assert queue.get(0) is None
    queue.done("a")
    assert queue.get(0) == "a"
    queue.done("a")
    assert queue.get(0) is None


def test_a_delayed_key_comes_when_its_time_has() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    queue.add_after("a", 5)
    clock.now = 4.9
    assert queue.get(0) is None
    clock.now = 5.0
    assert queue.get(0) == "a"


def test_of_many_delays_of_one_key_only_the_earliest_counts() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    for seconds in (5, 3, 7):
        queue.add_after("a", seconds)
    clock.now = 3.0
    assert queue.get(0) == "a"
    queue.done("a")
    clock.now = 100.0
    assert queue.get(0) is None


def test_failures_come_back_later_and_later_until_forgotten() -> None:
    clock = Clock()
    queue = WorkQueue(clock)
    waits = []
    for _ in range(4):
        queue.add_rate_limited("a")
        began = clock.now
        while queue.get(0) is None:
            clock.now += 0.0025
        queue.done("a")
        waits.append(clock.now - began)
    assert waits == sorted(waits)
    assert waits[3] >= 7 * waits[0]
    queue.forget("a")
    queue.add_rate_limited("a")
    clock.now += waits[0]
    assert queue.get(0) == "a"


def test_shutting_down_wakes_a_waiting_worker() -> None:
    queue = WorkQueue()
    got: list[object] = []
    thread = threading.Thread(target=lambda: got.append(queue.get()))
    thread.start()
    queue.shut_down()
    thread.join(2)
    assert got == [None]


def test_a_delay_of_centuries_ends_nobody() -> None:
    queue = WorkQueue(Clock())
    queue.add_after("later", 9_999_999_999.0)
    threading.Timer(0.05, queue.add, ("now",)).start()
    assert queue.get() == "now"
