"""A queue that says each thing once: waiting keys are not doubled, and one worker has a key at a time.

A key added while it is being worked on comes back when that is done, so no change is lost. Failed keys come
back later and later. Source: client-go's util/workqueue.
"""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable

FIRST_DELAY = 0.005
LONGEST_DELAY = 60.0


LONGEST_WAIT = 3600.0  # seconds

class WorkQueue:
    """FIFO of hashable keys for any number of producers and workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = threading.Condition()
        self._waiting: deque[Hashable] = deque()
        self._dirty: set[Hashable] = set()
        self._working: set[Hashable] = set()
        self._later: list[tuple[float, int, Hashable]] = []
        self._due: dict[Hashable, float] = {}
        self._failures: dict[Hashable, int] = {}
        self._sequence = 0
        self._closed = False

    def __len__(self) -> int:
        with self._changed:
            return len(self._waiting)

    def add(self, key: Hashable) -> None:
        """Queue the key, unless it waits already."""
        with self._changed:
            self._add(key)

    def _add(self, key: Hashable) -> None:
        if self._closed or key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._waiting.append(key)
            self._changed.notify()

    def add_after(self, key: Hashable, seconds: float) -> None:
        """Queue the key once `seconds` have passed; of several such calls the earliest counts.

        So a controller that asks for a look "in five seconds" at every pass has one such look ahead of it,
        not one for every pass.
        """
        with self._changed:
            due = self._clock() + seconds
            if self._closed or self._due.get(key, math.inf) <= due:
                return
            self._due[key] = due
            self._sequence += 1
            heapq.heappush(self._later, (due, self._sequence, key))
            # Every waiter may have to wake earlier than it thought, and it is not known which one will.
            self._changed.notify_all()

    def add_rate_limited(self, key: Hashable) -> None:
        """Queue the key after its back-off: 5 ms, doubling with every failure up to a minute."""
        with self._changed:
            failures = self._failures.get(key, 0)
            self._failures[key] = failures + 1
        self.add_after(key, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(failures, 20)))

    def forget(self, key: Hashable) -> None:
        """The key was handled: its next failure starts at the shortest back-off."""
        with self._changed:
            self._failures.pop(key, None)

    def get(self, timeout: float | None = None) -> str | None:
        """The next key, which is then this worker's until `done`; None after shut_down or `timeout`."""
        deadline = None if timeout is None else self._clock() + timeout
        with self._changed:
            while True:
                now = self._clock()
                while self._later and self._later[0][0] <= now:
                    due, _, ripe = heapq.heappop(self._later)
                    if self._due.get(ripe) == due:
                        del self._due[ripe]
                        self._add(ripe)
                if self._closed:
                    return None
                if self._waiting:
                    key = self._waiting.popleft()
                    self._dirty.discard(key)
                    self._working.add(key)
                    return key  # type: ignore[return-value]
                waits = [self._later[0][0] - now] if self._later else []
                if deadline is not None:
                    if deadline <= now:
                        return None
                    waits.append(deadline - now)
                # Locks know no such times as 300 years, which a deadline may be away.
                self._changed.wait(min(*waits, LONGEST_WAIT) if waits else None)

    def done(self, key: Hashable) -> None:
        """The worker is finished with the key; it is queued again if it was added meanwhile."""
        with self._changed:
            self._working.discard(key)
            if key in self._dirty and not self._closed:
                self._waiting.append(key)
                self._changed.notify()

    def shut_down(self) -> None:
        """Every `get`, now and later, answers None."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
