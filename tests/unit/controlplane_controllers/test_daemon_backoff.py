"""Waits of nodes for the successors of daemon pods: they double, and nothing is remembered for ever."""

from __future__ import annotations

from controlplane.controllers.daemon_backoff import FORGOTTEN_AFTER, LONGEST_DELAY, DaemonBackOff


def test_each_end_doubles_the_wait_up_to_a_limit() -> None:
    backoff, now, waits = DaemonBackOff(), 1000.0, []
    assert backoff.left("u", "n", now) == 0.0
    for _ in range(12):
        backoff.ended("u", "n", now)
        waits.append(backoff.left("u", "n", now))
        now += waits[-1]
        assert backoff.left("u", "n", now) <= 0
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0]
    assert waits[-1] == LONGEST_DELAY


def test_after_a_quiet_time_it_starts_anew() -> None:
    backoff = DaemonBackOff()
    for now in (0.0, 10.0, 20.0):
        backoff.ended("u", "n", now)
    later = 21.0 + FORGOTTEN_AFTER
    assert backoff.left("u", "n", later) == 0.0
    backoff.ended("u", "n", later)
    assert backoff.left("u", "n", later) == 1.0


def test_what_is_gone_is_forgotten() -> None:
    backoff = DaemonBackOff()
    for uid in ("a", "b"):
        for node in ("n1", "n2"):
            backoff.ended(uid, node, 0.0)
    backoff.forget_set("a")
    assert (backoff.left("a", "n1", 0.0), backoff.left("b", "n1", 0.0)) == (0.0, 1.0)
    backoff.forget_node("n1")
    assert (backoff.left("b", "n1", 0.0), backoff.left("b", "n2", 0.0)) == (0.0, 1.0)
    assert len(backoff) == 1


def test_places_that_nobody_asks_for_go_by_age() -> None:
    backoff = DaemonBackOff()
    for number in range(50):
        backoff.ended("u", f"n{number}", float(number))
    backoff.ended("u", "last", 60.0 + FORGOTTEN_AFTER)
    assert len(backoff) == 1
