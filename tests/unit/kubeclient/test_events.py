from __future__ import annotations

import itertools
import threading
from typing import Any

import pytest

from kubeclient.errors import AlreadyExists, Forbidden, NotFound, ServerUnavailable
from kubeclient.event_correlator import COMBINED, EventCorrelator
from kubeclient.events import LONGEST, QUIET, RETRY_SECONDS, TRIES, WAITING, EventRecorder, hold_back

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
    # Nine as they are; the tenth is made as one for all the others, which then only changes.
    combined = "(combined from similar events): "
    assert [e["message"] for e in client.created] == [*map(str, range(9)), f"{combined}9", "other"]
    told = [(body["count"], body["message"]) for _, body in client.patched]
    assert told == [(number - 8, f"{combined}{number}") for number in range(10, 25)]


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


class Clock:
    """Tells the correlator about a pod, and keeps what is to be sent."""

    def __init__(self) -> None:
        self.correlator = EventCorrelator()
        self.now = 1000.0
        self.made = 0

    def tell(
        self, message: str, *, reason: str = "R", path: str = "", uid: str = "u"
    ) -> tuple[str, int, str]:
        """(message, count, name); ("", 0, "") for what is not heard."""
        reference = {"kind": "Pod", "name": "p", "namespace": "d", "uid": uid, "fieldPath": path}
        told = self.correlator.tell(reference, "Normal", reason, message, self.now)
        if told is None:
            return "", 0, ""
        if not told.name:
            self.made += 1
            self.correlator.made(reference, "Normal", reason, told.message, f"e{self.made}")
        return told.message, told.count, told.name


def test_the_tenth_similar_event_within_ten_minutes_is_told_with_the_others() -> None:
    clock = Clock()
    for number in range(9):
        assert clock.tell(f"m{number}", path=f"spec.containers{{c{number}}}") == (f"m{number}", 1, "")
        clock.now += 60
    assert clock.tell("other", reason="Q")[0] == "other", "of another reason"
    assert clock.tell("m9") == (f"{COMBINED}m9", 1, "")
    assert clock.tell("m10") == (f"{COMBINED}m10", 2, "e11")
    assert clock.tell("m10", uid="v") == ("m10", 1, ""), "about another object"
    clock.now += 599
    assert clock.tell("m11")[0] == f"{COMBINED}m11"
    clock.now += 601
    assert clock.tell("m12") == ("m12", 1, ""), "ten minutes of silence"


def test_what_repeats_for_hours_is_one_event() -> None:
    clock = Clock()
    assert clock.tell("again") == ("again", 1, "")
    for hour in range(1, 5):
        clock.now += 3600
        assert clock.tell("again") == ("again", hour + 1, "e1")
    assert clock.tell("again", path="spec.containers{c}") == ("again", 1, ""), "of a part of the object"


def test_a_flood_is_cut_and_counted_and_one_is_heard_every_five_minutes() -> None:
    clock = Clock()
    heard = [clock.tell("flood")[1] for _ in range(40)]
    assert heard == [*range(1, 26), *[0] * 15]
    clock.now += 299
    assert clock.tell("flood")[1] == 0
    clock.now += 2
    assert clock.tell("flood") == ("flood", 42, "e1"), "with those that were not heard"
    assert clock.tell("flood")[1] == 0
    assert clock.tell("flood", uid="v")[1] == 1


def test_an_event_that_was_cleaned_up_is_made_again_with_its_count() -> None:
    class Cleaned(Recorded):
        def patch(self, resource: Any, name: str, body: dict[str, Any], namespace: str) -> dict[str, Any]:
            super().patch(resource, name, body, namespace)
            raise NotFound({"reason": "NotFound", "code": 404})

    client = Cleaned(3)
    events = recorder(client)
    for _ in range(2):
        events.event(POD, "Warning", "BackOff", "Back-off restarting")
    assert client.done.wait(5)
    assert [(each["count"], each["firstTimestamp"]) for each in client.created] == [
        (1, "1970-01-01T00:16:40Z"),
        (2, "1970-01-01T00:16:40Z"),
    ]


class Unreachable(Recorded):
    """Does not answer `failures` times; what it was asked to create then has been made by it with `made`."""

    def __init__(self, count: int, failures: int, made: bool = False) -> None:
        super().__init__(count)
        self._failures = failures
        self._made = made

    def create(self, resource: Any, obj: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
        if self._failures:
            self._failures -= 1
            if self._made:
                self.created.append(obj)
            raise ServerUnavailable({"code": 503, "message": "connection refused"})
        if obj["metadata"]["name"] in [known["metadata"]["name"] for known in self.created]:
            self._one()
            raise AlreadyExists({"code": 409, "reason": "AlreadyExists"})
        return super().create(resource, obj, namespace)


def retrying(client: Recorded, slept: list[float]) -> EventRecorder:
    times = itertools.count(1000.0)
    return EventRecorder(
        client,  # type: ignore[arg-type]
        "kubelet",
        clock=lambda: next(times),
        sleep=slept.append,
    )


def test_an_event_waits_for_a_server_that_does_not_answer() -> None:
    client, slept = Unreachable(2, failures=3), list[float]()
    events = retrying(client, slept)
    events.event(POD, "Normal", "Killing", "Stopping container c")
    events.event(POD, "Normal", "Started", "Started container c")
    assert client.done.wait(5)
    assert [event["reason"] for event in client.created] == ["Killing", "Started"]
    assert 0 <= slept[0] <= RETRY_SECONDS and slept[1:] == [RETRY_SECONDS, RETRY_SECONDS]


def test_an_event_is_given_up_after_twelve_tries_and_the_next_is_told() -> None:
    client, slept = Unreachable(1, failures=TRIES), list[float]()
    events = retrying(client, slept)
    events.event(POD, "Normal", "Lost", "nobody heard it")
    events.event(POD, "Normal", "Heard", "somebody did")
    assert client.done.wait(5)
    assert [event["reason"] for event in client.created] == ["Heard"] and len(slept) == TRIES - 1 == 11


def test_an_event_whose_answer_was_lost_is_not_made_twice_and_counts_on() -> None:
    client, slept = Unreachable(2, failures=1, made=True), list[float]()
    events = retrying(client, slept)
    for _ in range(2):
        events.event(POD, "Warning", "BackOff", "Back-off restarting")
    assert client.done.wait(5)
    (made,) = client.created
    assert [(name, body["count"]) for name, body in client.patched] == [(made["metadata"]["name"], 2)]


def test_what_the_server_refuses_is_not_told_again() -> None:
    class Refusing(Recorded):
        def create(self, resource: Any, obj: dict[str, Any], namespace: str | None = None) -> dict[str, Any]:
            self._one()
            raise Forbidden({"code": 403, "message": "namespace is being terminated"})

    client, slept = Refusing(2), list[float]()
    events = retrying(client, slept)
    events.event(POD, "Normal", "One", "1")
    events.event(POD, "Normal", "Two", "2")
    assert client.done.wait(5) and slept == []
