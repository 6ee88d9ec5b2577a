"""Which pod is tried next, and when a refused one comes back."""

from __future__ import annotations

from typing import Any

import pytest

from controlplane.scheduler.queue import LONGEST_WAIT, SchedulingQueue


def pod(name: str, priority: int | None = None, **spec: Any) -> dict[str, Any]:
    given = {} if priority is None else {"priority": priority}
    return {"metadata": {"uid": name}, "spec": {**given, **spec}}


def name(found: dict[str, Any] | None) -> str | None:
    return None if found is None else str(found["metadata"]["uid"])


def test_priority_goes_before_age_and_age_before_the_rest() -> None:
    queue = SchedulingQueue()
    for at, body in enumerate([pod("old"), pod("new"), pod("urgent", 10), pod("later", 10)]):
        queue.put(body, float(at))
    order = []
    while (found := queue.next(10.0)) is not None:
        order.append(name(found))
        queue.drop(found["metadata"]["uid"])
    assert order == ["urgent", "later", "old", "new"]
    assert len(queue) == 0 and queue.wait(10.0) is None


def test_a_refused_pod_waits_for_a_change_and_for_its_back_off() -> None:
    queue = SchedulingQueue()
    queue.put(pod("a"), 0.0)
    queue.refuse("a", 0.0)
    assert queue.next(100.0) is None
    queue.changed()
    assert queue.next(0.5) is None and queue.wait(0.5) == 0.5
    assert name(queue.next(1.0)) == "a"


def test_a_refused_pod_is_tried_after_five_minutes_in_any_case() -> None:
    queue = SchedulingQueue()
    queue.put(pod("a"), 0.0)
    queue.refuse("a", 0.0)
    assert queue.wait(0.0) == LONGEST_WAIT + 1.0
    assert name(queue.next(LONGEST_WAIT + 1.0)) == "a"


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1.0), (2, 2.0), (4, 8.0), (5, 10.0), (9, 10.0)])
def test_the_back_off_doubles_up_to_ten_seconds(failures: int, seconds: float) -> None:
    queue = SchedulingQueue()
    queue.put(pod("a"), 0.0)
    for _ in range(failures):
        queue.retry("a", 0.0)
    assert queue.wait(0.0) == seconds


def test_a_failed_binding_is_tried_again_without_a_change() -> None:
    queue = SchedulingQueue()
    queue.put(pod("a"), 0.0)
    queue.retry("a", 0.0)
    assert name(queue.next(1.0)) == "a"


def test_a_changed_spec_is_tried_at_once_and_a_changed_status_is_not() -> None:
    queue = SchedulingQueue()
    queue.put(pod("a"), 0.0)
    queue.refuse("a", 0.0)
    queue.put(pod("a") | {"status": {"phase": "Pending"}}, 0.1)
    assert queue.next(0.1) is None
    queue.put(pod("a", nodeSelector={"x": "y"}), 0.2)
    found = queue.next(0.2)
    assert found is not None and found["spec"]["nodeSelector"] == {"x": "y"}


def test_a_pod_in_its_back_off_does_not_hold_up_others() -> None:
    queue = SchedulingQueue()
    queue.put(pod("urgent", 10), 0.0)
    queue.put(pod("a"), 0.0)
    queue.retry("urgent", 0.0)
    assert name(queue.next(0.5)) == "a"
