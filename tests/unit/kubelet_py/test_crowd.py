"""How many pods are worked on at once."""

from __future__ import annotations

from kubelet_py.pods.crowd import Crowd


def entered(crowd: Crowd, now: float, start: int = 0) -> int:
    """How many come in until there is no room any more; each has a clock of its own."""
    number = start
    while crowd.room(now) > 0:
        crowd.enter(str(number), now, number)
        number += 1
    return number - start


def test_there_is_room_for_a_few_and_again_when_one_leaves() -> None:
    crowd = Crowd(width=4, patience=1.0, spent=lambda clock: 0.0)
    assert entered(crowd, 0.0) == 4 and "2" in crowd and "4" not in crowd
    crowd.leave("2")
    assert crowd.room(0.5) == 1 and "2" not in crowd


def test_whoever_waits_makes_room_for_more_than_one_other() -> None:
    crowd = Crowd(width=4, patience=1.0, spent=lambda clock: 7.0)
    entered(crowd, 0.0)
    assert crowd.more_room_at() == 1.0
    assert crowd.room(0.9) == 0
    assert entered(crowd, 1.0, 4) == 8
    assert entered(crowd, 2.0, 12) == 16, "a queue of any length has begun soon"


def test_whoever_is_slow_but_works_makes_none_until_it_waits() -> None:
    spent = {0: 0.0, 1: 0.0}
    crowd = Crowd(width=2, patience=1.0, spent=lambda clock: spent[clock])
    entered(crowd, 0.0)
    spent.update({0: 0.1, 1: 0.1})
    assert crowd.room(1.0) == 0 and crowd.more_room_at() == 2.0
    spent[1] = 0.2
    assert crowd.room(2.0) == 2, "for two, since the first of them waits"


def test_one_that_waited_takes_its_room_along() -> None:
    crowd = Crowd(width=1, patience=1.0, spent=lambda clock: 0.0)
    crowd.enter("waits", 0.0, 0)
    assert crowd.room(1.0) == 2 and crowd.more_room_at() is None
    crowd.leave("waits")
    crowd.leave("waits")
    assert crowd.room(1.0) == 1


def test_whoever_takes_long_makes_room_though_it_works() -> None:
    """Files that change their group on a slow disk: some CPU time all along, and no end in sight."""
    now = [0.0]
    crowd = Crowd(width=1, patience=1.0, spent=lambda clock: now[0] / 10)
    crowd.enter("slow", 0.0, 0)
    for second in (1.0, 2.0, 3.0, 4.0):
        now[0] = second
        assert crowd.room(second) == 0
    now[0] = 5.0
    assert crowd.room(5.0) == 2
