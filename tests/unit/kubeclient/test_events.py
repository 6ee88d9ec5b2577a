from __future__ import annotations

import threading
from typing import Any

import pytest

from kubeclient.events import LONGEST, QUIET, WAITING, EventRecorder, hold_back

POD = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": "d", "uid": "u"}}


class Recorded:
    """A client that keeps what is sent to it, and tells when `count` calls have come."""

    def __init__(self, count: int) -> None:
        self.created: list[dict[str, Any]] = []
        self.patched: list[tuple[str, dict[str, Any]]] = []
        self._left = count
        self.done = threading.Event()

    def _one(self) -> None:
        self._left -= 1
        if not self._left:
            self.done.set()

    def create(self, resource: Any, obj: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
        self.created.append(obj)
        self._one()
        return obj

    def patch(self, resource: Any, name: str, body: dict[str, Any], namespace: str) -> dict[str, Any]:
        self.patched.append((name, body))
        self._one()
        return body


def recorder(client: Recorded) -> EventRecorder:
    return EventRecorder(client, "kubelet", "n", clock=lambda: 1000.0)  # type: ignore[arg-type]


def test_an_event_tells_who_what_and_why() -> None:
    client = Recorded(1)
    recorder(client).event(POD, "Normal", "Started", "Started container", field_path="spec.containers{c}")
    assert client.done.wait(5)
    made = client.created[0]
    assert made["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "name": "p",
        "namespace": "d",
        "uid": "u",
        "fieldPath": "spec.containers{c}",
    }
    assert made["source"] == {"component": "kubelet", "host": "n"}
    assert (made["type"], made["reason"], made["count"]) == ("Normal", "Started", 1)
    assert made["firstTimestamp"] == "1970-01-01T00:16:40Z"


def test_a_repeated_event_raises_the_count_of_the_first() -> None:
    client = Recorded(3)
    events = recorder(client)
    for _ in range(3):
        events.event(POD, "Warning", "BackOff", "Back-off restarting")
    assert client.done.wait(5)
    assert len(client.created) == 1
    assert [body["count"] for _, body in client.patched] == [2, 3]


@pytest.mark.parametrize("flood", [40])
def test_one_objects_flood_is_cut_and_another_object_is_still_heard(flood) -> None:
    client = Recorded(26)
    events = recorder(client)
    for i in range(flood):
        events.event(POD, "Normal", "R", str(i))
    other = {**POD, "metadata": {**POD["metadata"], "uid": "v"}}
    events.event(other, "Normal", "R", "other")
    assert client.done.wait(5)
    assert [e["message"] for e in client.created] == [*map(str, range(25)), "other"]


@pytest.mark.parametrize(
    ("oldest", "newest", "now", "count", "left"),
    [
        (10.0, 10.0, 10.0, 1, QUIET),  # alone: more may come at once
        (10.0, 10.0 + QUIET / 2, 10.0 + QUIET, 2, QUIET / 2),  # another has come: things are happening
        (10.0, 10.0, 10.0 + QUIET, 1, 0.0),
        (10.0, 10.0 + LONGEST, 10.0 + LONGEST, 9, 0.0),  # they go on happening
        (10.0, 10.0, 10.0, WAITING // 2, 0.0),  # none may be lost for politeness
    ],
)
def test_events_wait_while_more_are_told_but_not_long(
    oldest: float, newest: float, now: float, count: int, left: float
) -> None:
    assert hold_back(oldest, newest, now, count) == pytest.approx(left)
