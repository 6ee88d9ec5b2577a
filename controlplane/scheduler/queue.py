"""Pods that wait for a node: ready ones by priority and age, refused ones until something changes.

Pure bookkeeping with the clock passed in. A refused pod comes back when the cluster changes in a way that
may help (a node appeared or changed, a pod went away), but not before its back-off of 1 s, doubling to 10 s,
is over; or after five minutes in any case (upstream's scheduling queue).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]

FIRST_BACKOFF = 1.0
LONGEST_BACKOFF = 10.0
LONGEST_WAIT = 300.0


@dataclass(slots=True)
class _Entry:
    pod: Object
    added: float
    attempts: int = 0
    not_before: float = 0.0
    refused: bool = False


class SchedulingQueue:
    """Keyed by pod UID; not thread-safe by itself (the scheduler holds its lock around every call)."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, pod: Object, now: float) -> None:
        """Add the pod, or take its newer form; a refused pod whose spec changed is tried again."""
        uid = pod["metadata"]["uid"]
        entry = self._entries.get(uid)
        if entry is None:
            self._entries[uid] = _Entry(pod, now)
            return
        if entry.pod["spec"] != pod["spec"]:
            entry.refused, entry.not_before = False, 0.0
        entry.pod = pod

    def knows(self, uid: str) -> bool:
        return uid in self._entries

    def drop(self, uid: str) -> None:
        """Forget the pod: it is bound or gone."""
        self._entries.pop(uid, None)

    def refuse(self, uid: str, now: float) -> None:
        """The pod fits nowhere now: wait for a change, or five minutes."""
        self._back_off(uid, now, refused=True)

    def retry(self, uid: str, now: float) -> None:
        """Binding failed: try again after the back-off, change or not."""
        self._back_off(uid, now, refused=False)

    def _back_off(self, uid: str, now: float, *, refused: bool) -> None:
        entry = self._entries.get(uid)
        if entry is not None:
            entry.attempts += 1
            entry.refused = refused
            entry.not_before = now + min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** (entry.attempts - 1))

    def changed(self, helped: Callable[[Object], bool] = lambda pod: True) -> None:
        """Something changed that may help: refused pods become ready once their back-off is over.

        `helped` says of a pod whether such a change can help it at all.
        """
        for entry in self._entries.values():
            if entry.refused and helped(entry.pod):
                entry.refused = False

    def next(self, now: float) -> Object | None:
        """The ready pod of the highest priority, the oldest of these; it stays in the queue."""
        ready = [e for e in self._entries.values() if self._due(e) <= now]
        if not ready:
            return None
        return min(ready, key=lambda e: (-int(e.pod["spec"].get("priority") or 0), e.added)).pod

    def wait(self, now: float) -> float | None:
        """Seconds until a pod becomes ready without a change, or None where nothing waits."""
        if not self._entries:
            return None
        return max(0.0, min(self._due(e) for e in self._entries.values()) - now)

    def _due(self, entry: _Entry) -> float:
        return entry.not_before + LONGEST_WAIT if entry.refused else entry.not_before
