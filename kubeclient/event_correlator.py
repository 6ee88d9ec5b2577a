"""Which events are one: what repeats raises a count, what is similar is told together, what floods is cut.

Three steps, as client-go's tools/record (events_cache.go) takes them, in this order:
1. ten different messages of one reason about one object within ten minutes: from the tenth on they are told
   as one, "(combined from similar events): …", whose message is that of the last;
2. an event that was told before, the very same or such a joined one, raises `count` on that;
3. an object that tells more than 25 events at once, and then more than one in five minutes, is not heard. Its
   events count nevertheless, so that the next one that is heard says how many there were.

No thread and no clock of its own: the moment comes with the event.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Object = dict[str, Any]
SIMILAR, SIMILAR_SECONDS = 10, 600.0
COMBINED = "(combined from similar events): "
BURST, REFILL = 25, 1 / 300
REMEMBERED = 4096

Key = tuple[str, ...]
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Told:
    """What to send: a new event, or another `count` and message for the one with this name."""

    message: str
    count: int
    first: float
    name: str = ""


@dataclass(slots=True)
class _Similar:
    seen: float
    messages: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Event:
    count: int
    first: float
    name: str = ""


class EventCorrelator:
    """`tell` decides about an event, `made` learns under which name it was made. For one thread."""

    def __init__(self) -> None:
        self._similar: _Recent[_Similar] = _Recent()
        self._events: _Recent[_Event] = _Recent()
        self._tokens: _Recent[tuple[float, float]] = _Recent()

    def tell(self, reference: Object, kind: str, reason: str, message: str, now: float) -> Told | None:
        """None: the object has told too much already."""
        message, key = self._joined(reference, kind, reason, message, now)
        event = self._events.get(key, lambda: _Event(0, now))
        event.count += 1
        if not self._heard(_object(reference), now):
            return None
        return Told(message, event.count, event.first, event.name)

    def made(self, reference: Object, kind: str, reason: str, message: str, name: str) -> None:
        """The event with this message (Told.message) has this name in the API."""
        joined = message.startswith(COMBINED)
        key = _group(reference, kind, reason) if joined else _single(reference, kind, reason, message)
        self._events.get(key, lambda: _Event(1, 0.0)).name = name

    def _joined(self, reference: Object, kind: str, reason: str, message: str, now: float) -> tuple[str, Key]:
        group = _group(reference, kind, reason)
        known = self._similar.get(group, lambda: _Similar(now))
        if now - known.seen > SIMILAR_SECONDS:
            known.messages.clear()
        known.seen = now
        known.messages.add(message)
        if len(known.messages) < SIMILAR:
            return message, _single(reference, kind, reason, message)
        known.messages.pop()
        return f"{COMBINED}{message}", group

    def _heard(self, key: Key, now: float) -> bool:
        """A token bucket per object."""
        tokens, since = self._tokens.get(key, lambda: (float(BURST), now))
        tokens = min(float(BURST), tokens + (now - since) * REFILL)
        self._tokens.put(key, (tokens - 1 if tokens >= 1 else tokens, now))
        return tokens >= 1


class _Recent(Generic[V]):
    """Values by key; of too many the one goes that was asked for the longest time ago."""

    def __init__(self) -> None:
        self._values: OrderedDict[Key, V] = OrderedDict()

    def get(self, key: Key, make: Callable[[], V]) -> V:
        if key not in self._values:
            self.put(key, make())
        self._values.move_to_end(key)
        return self._values[key]

    def put(self, key: Key, value: V) -> None:
        self._values[key] = value
        while len(self._values) > REMEMBERED:
            self._values.popitem(last=False)


def _object(reference: Object) -> Key:
    return tuple(str(reference.get(key, "")) for key in ("apiVersion", "kind", "namespace", "name", "uid"))


def _group(reference: Object, kind: str, reason: str) -> Key:
    """Similar are events about any part of the object."""
    return (*_object(reference), kind, reason)


def _single(reference: Object, kind: str, reason: str, message: str) -> Key:
    return (*_object(reference), str(reference.get("fieldPath", "")), kind, reason, message)
